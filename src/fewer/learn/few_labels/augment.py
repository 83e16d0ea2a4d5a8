"""Weak and strong views of a batch, made on the device that trains.

Weak: a shift by up to an eighth of the side with reflected borders, and for pictures that have no left and
right a flip. Strong: the weak view, three operations of RandAugment, then a grey box (Cutout).
"""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

from fewer.learn.few_labels.randaugment import COLOUR_POOL, GREY_POOL, Pictures, rand_augment

SHIFT = 0.125
BOX = 0.5  # largest side of the box, as a share of the picture's
_BOX_COLOUR = (125, 123, 114)
_BOX_GREY = 123


def weak_view(images: Pictures, generator: torch.Generator, *, flip: bool) -> Pictures:
    """Each image shifted (and flipped) for itself."""
    count, _, height, width = images.shape
    down = torch.randint(-int(height * SHIFT), int(height * SHIFT) + 1, (count, 1), generator=generator)
    right = torch.randint(-int(width * SHIFT), int(width * SHIFT) + 1, (count, 1), generator=generator)
    rows = reflected(torch.arange(height)[None] + down, height)
    columns = reflected(torch.arange(width)[None] + right, width)
    if flip:
        turned = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
    place = (rows[:, :, None] * width + columns[:, None, :]).flatten(1).to(images.device, non_blocking=True)
    picked = images.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1))
    return picked.reshape(images.shape)


def reflected(positions: Tensor, size: int) -> Tensor:
    """Positions outside 0 .. size - 1 mirrored back in, the border itself not repeated."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def strong_view(weak: Pictures, generator: torch.Generator, pool: tuple[str, ...]) -> Pictures:
    """RandAugment and Cutout on weak views."""
    return cutout(rand_augment(weak, generator, pool), generator)


def cutout(images: Pictures, generator: torch.Generator) -> Pictures:
    """A grey square of side 0 .. half the picture, centred anywhere; what leaves the picture is lost."""
    count, channels, height, width = images.shape
    share = torch.rand(count, 1, generator=generator) * BOX
    centre_y = torch.rand(count, 1, generator=generator) * height
    centre_x = torch.rand(count, 1, generator=generator) * width
    side = share * width
    rows = ((torch.arange(height)[None] + 0.5 - centre_y).abs() <= side / 2).to(images.device)
    columns = ((torch.arange(width)[None] + 0.5 - centre_x).abs() <= side / 2).to(images.device)
    box = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(box, _fill(channels, images.device), images)


def _fill(channels: int, device: torch.device) -> UInt8[Tensor, "1 channels 1 1"]:
    colours = [_BOX_GREY] if channels == 1 else _BOX_COLOUR
    return torch.tensor(colours, dtype=torch.uint8, device=device)[None, :, None, None]


def strong_pool(strong: str, channels: int) -> tuple[str, ...]:
    """The operations that `strong` ("auto", "colour", "grey") stands for."""
    if strong == "auto":
        strong = "grey" if channels == 1 else "colour"
    return GREY_POOL if strong == "grey" else COLOUR_POOL
