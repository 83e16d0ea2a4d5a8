"""Tiling with blended seams, as diffusers does it: for comparison, and for models that are not ours.

Each tile is encoded or decoded alone, so attention and zero padding see only the tile, and overlaps are
mixed linearly: the result differs from the untiled one. `tiling.py` is exact and should be preferred.
Unlike diffusers 0.42 (tiles of 512 px every 448 px whatever the ratio), tile and stride are whole numbers
of latents here, so that f64 and f128 models give pictures and latents of the right size.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.errors import ConfigError
from fewer.core.progress import Progress, SilentProgress, track
from fewer.generate.autoencoder.dc_ae import DCAutoencoder


@torch.no_grad()
def decode_blended(
    autoencoder: DCAutoencoder,
    latents: Float[Tensor, "batch latent_channels lat_h lat_w"],
    tile: int = 512,
    stride: int = 448,
    progress: Progress | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Decodes tiles of `tile` pixels every `stride` (rounded down to whole latents) and blends them.

    `progress` hears of every tile.
    """
    ratio = autoencoder.config.spatial_compression_ratio
    side, step = _in_latents(tile, stride, ratio)
    size = (latents.shape[2] * ratio, latents.shape[3] * ratio)
    total = weights = None
    places = _places((latents.shape[2], latents.shape[3]), side, step)
    for row, column in track(places, progress or SilentProgress(), "decode"):
        part = autoencoder.decode(latents[..., row : row + side, column : column + side], tile=None)
        if total is None or weights is None:
            total = part.new_zeros(*part.shape[:2], *size, dtype=torch.float32)
            weights = part.new_zeros(size, dtype=torch.float32)
        place = (row * ratio, column * ratio)
        _add(total, weights, part, place, size, (side - step) * ratio)
    assert total is not None and weights is not None
    return (total / weights).to(latents.dtype)


@torch.no_grad()
def encode_blended(
    autoencoder: DCAutoencoder,
    image: Float[Tensor, "batch channels height width"],
    tile: int = 512,
    stride: int = 448,
    progress: Progress | None = None,
) -> Float[Tensor, "batch latent_channels lat_h lat_w"]:
    """Encodes tiles of `tile` pixels every `stride` (rounded down to whole latents) and blends them.

    `progress` hears of every tile.
    """
    ratio = autoencoder.config.spatial_compression_ratio
    side, step = _in_latents(tile, stride, ratio)
    size = (image.shape[2] // ratio, image.shape[3] // ratio)
    total = weights = None
    for row, column in track(_places(size, side, step), progress or SilentProgress(), "encode"):
        top, left = row * ratio, column * ratio
        crop = image[..., top : top + side * ratio, left : left + side * ratio]
        part = autoencoder.encode(crop, tile=None)
        if total is None or weights is None:
            total = part.new_zeros(*part.shape[:2], *size, dtype=torch.float32)
            weights = part.new_zeros(size, dtype=torch.float32)
        _add(total, weights, part, (row, column), size, side - step)
    assert total is not None and weights is not None
    return (total / weights).to(image.dtype)


def _in_latents(tile: int, stride: int, ratio: int) -> tuple[int, int]:
    if not 0 < stride <= tile or tile < ratio:
        raise ConfigError(
            f"tile {tile} with stride {stride}: the tile must hold at least one latent of {ratio} px and the "
            "stride must lie in 1 .. tile"
        )
    return tile // ratio, max(stride // ratio, 1)


def _places(size: tuple[int, int], side: int, step: int) -> list[tuple[int, int]]:
    """Upper left corners of all tiles."""
    return [(row, column) for row in _starts(size[0], side, step) for column in _starts(size[1], side, step)]


def _starts(length: int, side: int, step: int) -> list[int]:
    """Where tiles begin: every `step`, until one reaches the end."""
    return list(range(0, max(length - side, 0) + step, step))[: max(-(-(length - side) // step), 0) + 1]


def _add(
    total: Tensor, weights: Tensor, part: Tensor, place: tuple[int, int], size: tuple[int, int], overlap: int
) -> None:
    """Adds a tile with weights that rise linearly over the overlap at every edge inside the picture."""
    ramps = []
    for axis in (0, 1):
        length, start = part.shape[2 + axis], place[axis]
        rise = (torch.arange(length, device=part.device, dtype=torch.float32) + 0.5) / max(overlap, 1)
        ramp = torch.ones_like(rise)
        if start > 0:
            ramp = torch.minimum(ramp, rise)
        if start + length < size[axis]:
            ramp = torch.minimum(ramp, rise.flip(0))
        ramps.append(ramp)
    weight = ramps[0][:, None] * ramps[1][None]
    rows = slice(place[0], place[0] + part.shape[2])
    columns = slice(place[1], place[1] + part.shape[3])
    total[..., rows, columns] += part * weight
    weights[rows, columns] += weight
