"""Multi-formation (IDC, Kim et al. 2022): one stored picture holds factor x factor small ones.

At a fixed number of bytes the network sees factor² as many pictures, each of lower resolution: the cheapest
single gain in the field. Decoding is linear, so gradients reach the stored pixels exactly.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from fewer.core.errors import ConfigError


def decode(
    images: Float[Tensor, "n channels height width"], factor: int
) -> Float[Tensor, "m channels height width"]:
    """The m = n·factor² pictures to train on, those of one stored picture side by side.

    Sides that are no multiple of `factor` lose their last rows or columns. Factor 1 returns `images`.
    """
    if factor == 1:
        return images
    height, width = images.shape[2:]
    small = images[:, :, : height // factor * factor, : width // factor * factor]
    tiles = rearrange(small, "n c (a h) (b w) -> (n a b) c h w", a=factor, b=factor)
    return torch.nn.functional.interpolate(tiles, (height, width), mode="bilinear", align_corners=False)


def encode(
    images: Float[Tensor, "m channels height width"], factor: int
) -> Float[Tensor, "n channels height width"]:
    """Shrinks factor² pictures into one stored picture each: where a multi-formation set starts from."""
    if factor == 1:
        return images
    if len(images) % factor**2:
        raise ConfigError(f"{len(images)} pictures do not fill stored pictures of {factor} x {factor}")
    height, width = images.shape[2:]
    small = torch.nn.functional.interpolate(
        images, (height // factor, width // factor), mode="bilinear", antialias=True
    )
    tiled = rearrange(small, "(n a b) c h w -> n c (a h) (b w)", a=factor, b=factor)
    bottom, right = height - tiled.shape[2], width - tiled.shape[3]
    return torch.nn.functional.pad(tiled, (0, right, 0, bottom))
