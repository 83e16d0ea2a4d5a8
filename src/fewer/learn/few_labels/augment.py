"""Weak and strong views of a batch, made on the device that trains.

Weak: a shift by up to an eighth of the side with reflected borders, and for pictures that have no left and
right a flip. Strong: the weak view, three operations of RandAugment, then a grey box (Cutout).
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from fewer.learn.few_labels.randaugment import COLOUR_POOL, GREY_POOL, Pictures, rand_augment

SHIFT = 0.125
BOX = 0.5  # largest side of the box, as a share of the picture's
_BOX_COLOUR = (125, 123, 114)
_BOX_GREY = 123


def weak_view(images: Pictures, generator: torch.Generator, *, flip: bool) -> Pictures:
    """Each image shifted (and flipped) for itself."""
    count, _, height, width = images.shape
    drawn = draw_shifts(count, height, width, generator, flip=flip)
    return shifted(images, drawn.to(images.device, non_blocking=True))


def draw_shifts(
    count: int, height: int, width: int, generator: torch.Generator, *, flip: bool
) -> Int64[Tensor, "count 3"]:
    """Rows down, columns to the right, mirrored or not (1, 0), for each image."""
    down = torch.randint(-int(height * SHIFT), int(height * SHIFT) + 1, (count, 1), generator=generator)
    right = torch.randint(-int(width * SHIFT), int(width * SHIFT) + 1, (count, 1), generator=generator)
    turned = torch.zeros(count, 1, dtype=torch.int64)
    if flip:
        turned = (torch.rand(count, 1, generator=generator) < 0.5).long()
    return torch.cat([down, right, turned], 1)


def shifted(images: Pictures, drawn: Int64[Tensor, "n 3"]) -> Pictures:
    """The images at the drawn places, borders reflected; `drawn` lies on their device."""
    height, width = images.shape[2:]
    down, right, turned = drawn.split(1, dim=1)
    rows = reflected(torch.arange(height, device=images.device)[None] + down, height)
    across = torch.arange(width, device=images.device)[None]
    columns = reflected(torch.where(turned > 0, width - 1 - across, across) + right, width)
    place = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
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
    return cut(images, draw_boxes(*images.shape[::2], images.shape[3], generator).to(images.device))


def draw_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Float32[Tensor, "count 3"]:
    """Side and centre (y, x) of each image's box, in pixels."""
    side = torch.rand(count, 1, generator=generator) * BOX * width
    centre_y = torch.rand(count, 1, generator=generator) * height
    centre_x = torch.rand(count, 1, generator=generator) * width
    return torch.cat([side, centre_y, centre_x], 1)


def cut(images: Pictures, boxes: Float32[Tensor, "n 3"]) -> Pictures:
    """The images with their boxes filled; `boxes` lie on their device."""
    channels, height, width = images.shape[1:]
    side, centre_y, centre_x = boxes.split(1, dim=1)
    rows = (torch.arange(height, device=images.device)[None] + 0.5 - centre_y).abs() <= side / 2
    columns = (torch.arange(width, device=images.device)[None] + 0.5 - centre_x).abs() <= side / 2
    box = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(box, _fill(channels, images.device), images)


def _fill(channels: int, device: torch.device) -> UInt8[Tensor, "1 channels 1 1"]:
    # Filled, not copied from the host: a copy cannot be recorded in a graph.
    colours = [_BOX_GREY] if channels == 1 else _BOX_COLOUR
    parts = [torch.full((1, 1, 1, 1), colour, dtype=torch.uint8, device=device) for colour in colours]
    return torch.cat(parts, 1)


def strong_pool(strong: str, channels: int) -> tuple[str, ...]:
    """The operations that `strong` ("auto", "colour", "grey") stands for."""
    if strong == "auto":
        strong = "grey" if channels == 1 else "colour"
    return GREY_POOL if strong == "grey" else COLOUR_POOL
