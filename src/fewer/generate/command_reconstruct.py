"""`fewer reconstruct`: a picture through the autoencoder and back, with what it cost in quality; or a folder
of pictures, and a report of what the latents keep of them."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from fewer.generate.autoencoder.dc_ae import DCAutoencoder

COMFORTABLE = 2**30
"""Bytes that encoding or decoding takes at most where tiles can keep to it: others work beside us."""
COPIES = 6
"""The picture as numbers, padded, decoded, compared: how often it is in memory outside the networks."""
BLENDED_TILE = 512
CROPS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructRequest:
    """What `fewer reconstruct` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    image: tyro.conf.Positional[Path]
    """PNG, JPEG or WebP picture of any size; or a folder of them, for a report."""
    output: Path
    """PNG file to write; for a folder, the report's JSON file."""
    model: str = "default"
    """Folder of an autoencoder, or of a model with one in `vae/`; "default" is the built-in one."""
    tile: Annotated[int, Field(ge=0, le=65536)] | None = None
    """Tile side in pixels; 0 never tiles; left out, tiles keep the work below a GiB where they can."""
    tiling: Literal["exact", "blended"] = "exact"
    """`exact` equals the untiled result; `blended` mixes overlapping tiles, as other tools do."""
    channels: Annotated[int, Field(ge=1)] | None = None
    """Structured latents: decode from this many leading channels."""
    crops: Annotated[int, Field(ge=2, le=100_000)] = CROPS
    """For a folder: how many random crops the report is about."""
    crop: Annotated[int, Field(ge=0, le=8192)] = 0
    """For a folder: side of the crops in pixels; 0 takes 4 latents each way, at least 128."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the crops of a folder; nothing else here is random."""
    device: DeviceName = "auto"
    """Where to run."""
    dtype: DtypeName = "auto"
    """Number format; fp16 overflows in some published models."""


def reconstruct_command(request: ReconstructRequest, progress: Progress) -> dict[str, object]:
    """Encodes, decodes, writes the PNG and compares it with the input: `psnr` in dB, `ssim`, `seconds`.

    For a folder: the figures of `reconstruction_report`, printed and written. Raises `ConfigError` for an
    output of the wrong kind, `DataError` for a folder without pictures.
    """
    import io

    from fewer.core.device import pick_device, pick_dtype
    from fewer.core.files import output_files, read_image, write_bytes
    from fewer.generate.autoencoder.crops import picture_mode, to_picture, to_tensor
    from fewer.generate.autoencoder.dc_ae import DCAutoencoder
    from fewer.generate.image_metrics import BEST_PSNR, psnr, ssim

    _check_options(request)
    output_files([request.output])
    device = pick_device(request.device)
    autoencoder = DCAutoencoder.load(
        autoencoder_folder(request.model), dtype=pick_dtype(request.dtype, device), device=device
    )
    if request.image.is_dir():
        return _report(autoencoder, request)
    known = {autoencoder.config.latent_channels, *autoencoder.config.latent_prefixes}
    if request.channels is not None and request.channels not in known:
        allowed = " or ".join(map(str, sorted(known)))
        raise ConfigError(
            f"latents were asked for with {request.channels} channels; this autoencoder takes {allowed}"
        )
    picture = read_image(request.image)
    original = to_tensor(picture.convert(picture_mode(autoencoder.config.in_channels)))[None]
    progress.say(f"{picture.width} x {picture.height} pixels, {autoencoder.config.spatial_compression_ratio} "
                 "pixels a latent each way")  # fmt: skip
    tiles = _plan(autoencoder, original, request)
    began = time.monotonic()
    latents, result = _there_and_back(autoencoder, original, request, tiles, progress)
    seconds = time.monotonic() - began
    back = to_picture(result[0])
    stream = io.BytesIO()
    back.save(stream, format="PNG")
    write_bytes(request.output, stream.getvalue())
    written = to_tensor(back)[None]
    return {
        "output": str(request.output),
        "psnr": float(psnr(written, original).clamp(max=BEST_PSNR)[0]),
        "ssim": float(ssim(written, original)[0]),
        "latents": list(latents.shape[1:]),
        "numbers_kept": latents[0].numel() / original[0].numel(),
        "seconds": round(seconds, 3),
    }


def _check_options(request: ReconstructRequest) -> None:
    """Raises `ConfigError` for options that mean nothing for what was given."""
    if request.image.is_dir():
        tiled = request.tile is not None or request.tiling != "exact"
        if request.output.suffix != ".json" or request.channels or tiled:
            raise ConfigError(
                f"a folder gives a report: --output must be a .json file, not {request.output.name!r}, and "
                "--tile, --tiling and --channels are for single pictures"
            )
        return
    if request.output.suffix.lower() != ".png":
        raise ConfigError(f"output {request.output.name!r} must be a .png file")
    if request.crop or request.crops != CROPS:
        raise ConfigError(
            f"--crop and --crops are for the report about a folder; {request.image.name!r} is none"
        )
    if request.tiling == "blended" and request.tile == 0:
        raise ConfigError("--tile 0 never tiles and --tiling blended does; leave one out, or try --tile 512")


def _report(autoencoder: "DCAutoencoder", request: ReconstructRequest) -> dict[str, object]:
    import torch

    from fewer.core.device import require_memory
    from fewer.core.files import write_json
    from fewer.generate.autoencoder.crops import PictureFolder
    from fewer.generate.autoencoder.report import reconstruction_report

    began = time.monotonic()
    ratio = autoencoder.config.spatial_compression_ratio
    side = request.crop or max(4 * ratio, 128)
    if side % ratio:
        raise ConfigError(f"crop {side} is no multiple of {ratio}; try {ratio * max(1, side // ratio)}")
    channels = autoencoder.config.in_channels
    pictures = PictureFolder(request.image, channels)
    numbers = channels * request.crops * side**2
    require_memory(COPIES * 4 * numbers, torch.device("cpu"), "try fewer --crops or a smaller --crop")
    generator = torch.Generator().manual_seed(request.seed)
    crops = pictures.crops(request.crops, side, generator, held_out=bool(pictures.held_out))
    dtype = next(autoencoder.parameters()).dtype
    figures = {
        "output": str(request.output),
        "pictures": len(pictures.held_out or pictures.train),
        "crop": side,
        **reconstruction_report(autoencoder, crops.to(dtype)),
        "seconds": round(time.monotonic() - began, 3),
    }
    write_json(request.output, figures)
    return figures


def _plan(
    autoencoder: "DCAutoencoder", original: "Tensor", request: ReconstructRequest
) -> tuple[int | None, int | None]:
    """The tiles of encoding and decoding. Raises `CapacityError`, before any work, for what does not fit."""
    from fewer.core.device import require_memory
    from fewer.generate.autoencoder.capacity import peak_bytes, pick_tile

    parameter = next(autoencoder.parameters())
    ratio = autoencoder.config.spatial_compression_ratio
    height, width = (-(-side // ratio) * ratio for side in original.shape[2:])
    pixels = (1, original.shape[1], height, width)
    networks = (autoencoder.encoder, autoencoder.decoder)
    if request.tiling == "blended":
        side = request.tile or BLENDED_TILE
        pixels = (1, original.shape[1], min(side, height), min(side, width))
        tiles, within = [side, side], [None, None]  # each tile is a whole picture to the networks
    else:
        tile = "auto" if request.tile is None else request.tile or None
        tiles = within = [pick_tile(network, pixels, parameter, tile, COMFORTABLE) for network in networks]
    needed = [
        peak_bytes(network, pixels, parameter.element_size(), side)
        for network, side in zip(networks, within, strict=True)
    ]
    copies, advice = COPIES * original.nbytes, "try a smaller picture, a --tile such as 256, or --dtype bf16"
    together = copies if parameter.device == original.device else 0
    require_memory(max(needed) + together, parameter.device, advice)
    require_memory(copies, original.device, "try a smaller picture")
    return tiles[0], tiles[1]


def _there_and_back(
    autoencoder: "DCAutoencoder",
    original: "Tensor",
    request: ReconstructRequest,
    tiles: tuple[int | None, int | None],
    progress: Progress,
) -> "tuple[Tensor, Tensor]":
    from fewer.generate.autoencoder.blended import decode_blended, encode_blended
    from fewer.generate.autoencoder.dc_ae import pad_to_multiple

    parameter = next(autoencoder.parameters())
    image = original.to(parameter.device, parameter.dtype)
    size = (image.shape[2], image.shape[3])
    if request.tiling == "blended":
        image = pad_to_multiple(image, autoencoder.config.spatial_compression_ratio)
        side = tiles[0] or BLENDED_TILE
        stride = max(side * 7 // 8, 1)
        latents = encode_blended(autoencoder, image, side, stride, progress)[:, : request.channels]
        result = decode_blended(autoencoder, latents, side, stride, progress)[..., : size[0], : size[1]]
    else:
        latents = autoencoder.encode(image, tile=tiles[0], pad=True, progress=progress)
        latents = latents[:, : request.channels]
        result = autoencoder.decode(latents, tile=tiles[1], size=size, progress=progress)
    return latents, result.float().cpu()


def autoencoder_folder(model: str) -> Path:
    """The folder that holds the autoencoder of `model`; a whole model keeps it in `vae/`.

    Raises `FileError` where "default" is asked for and no model is built in.
    """
    from fewer.core.errors import FileError
    from fewer.generate.model_folder import DEFAULT_MODEL

    if model == "default" and not DEFAULT_MODEL.is_dir():
        raise FileError("this installation has no built-in model; pass --model FOLDER", missing=True)
    folder = DEFAULT_MODEL if model == "default" else Path(model)
    return folder / "vae" if (folder / "vae").is_dir() else folder
