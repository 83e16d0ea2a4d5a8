"""Differentiable siamese augmentation: one and the same random change on the real and the synthetic batch.

One operation is drawn per call (as in DSA, Zhao & Bilen 2021), its strengths per class or per picture, and
everything it does is differentiable in the pictures. Pictures are normalised (mean 0), so that empty borders
are 0. Strengths: flip 0.5, scale 1.2, rotate 15°, crop 0.125, cutout 0.5, brightness 1, saturation 2,
contrast 0.5 (DSA's reference settings).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

OperationName = Literal["brightness", "saturation", "contrast", "crop", "cutout", "flip", "scale", "rotate"]
COLOUR: tuple[OperationName, ...] = (
    "brightness",
    "saturation",
    "contrast",
    "crop",
    "cutout",
    "scale",
    "rotate",
)
GREY: tuple[OperationName, ...] = ("brightness", "contrast", "crop", "cutout", "scale", "rotate")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One drawn change: `strengths` are four uniform numbers in [0, 1) for each row it will be applied to."""

    operation: OperationName | None
    """None changes nothing."""
    strengths: Float[Tensor, "rows 4"]

    def __call__(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Row i of the strengths changes the i-th equal share of the batch; differentiable in `images`."""
        if self.operation is None:
            return images
        share = len(images) // len(self.strengths)
        if share * len(self.strengths) != len(images):
            raise ValueError(f"{len(images)} pictures cannot be shared among {len(self.strengths)} strengths")
        strengths = self.strengths.to(images.device, images.dtype).repeat_interleave(share, 0)
        return _apply(self.operation, images, strengths)

    def on_classes(
        self, images: Float[Tensor, "classes batch channels height width"]
    ) -> Float[Tensor, "classes batch channels height width"]:
        """The same with one row of strengths per class: siamese on whatever batch each class has."""
        return self(images.flatten(0, 1)).unflatten(0, images.shape[:2])


def default_augmentations(channels: int, *, flips: bool = False) -> tuple[OperationName, ...]:
    """Grey pictures have no saturation to change; flips only where the subject allows them (not for
    digits).
    """
    names = COLOUR if channels == 3 else GREY
    return (*names, "flip") if flips else names


def draw_augmentation(
    names: tuple[OperationName, ...], rows: int, generator: torch.Generator
) -> Augmentation:
    """Draws one of `names` (none: no change) with `rows` rows of strengths, on the CPU."""
    if not names:
        return Augmentation(None, torch.zeros(rows, 4))
    choice = int(torch.randint(len(names), (1,), generator=generator))
    return Augmentation(names[choice], torch.rand(rows, 4, generator=generator))


def _apply(operation: OperationName, images: Tensor, strengths: Tensor) -> Tensor:
    u = [strengths[:, k, None, None, None] for k in range(4)]
    if operation == "brightness":
        return images + (u[0] - 0.5)
    if operation == "saturation":
        grey = images.mean(1, keepdim=True)
        return (images - grey) * (u[0] * 2.0) + grey
    if operation == "contrast":
        mean = images.mean((1, 2, 3), keepdim=True)
        return (images - mean) * (u[0] + 0.5) + mean
    if operation == "flip":
        return torch.where(u[0] < 0.5, images.flip(3), images)
    if operation == "crop":
        return _shift(images, strengths, 0.125)
    if operation == "cutout":
        return images * _cutout_mask(images, strengths, 0.5)
    if operation == "scale":
        # Either side grows or shrinks by at most 1.2.
        factors = 1.2 ** (2 * strengths[:, :2] - 1)
        return _affine(images, torch.diag_embed(factors))
    angles = (2 * strengths[:, 0] - 1) * (15 * pi / 180)
    rows = torch.stack([angles.cos(), angles.sin(), -angles.sin(), angles.cos()], 1)
    return _affine(images, rows.reshape(-1, 2, 2))


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    theta = torch.cat([matrix, matrix.new_zeros(len(matrix), 2, 1)], 2)
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False)


def _shift(images: Tensor, strengths: Tensor, ratio: float) -> Tensor:
    """Moves each picture by whole pixels, at most `ratio` of its side; what comes in is 0."""
    batch, _, height, width = images.shape
    reach_y, reach_x = round(height * ratio), round(width * ratio)
    padded = torch.nn.functional.pad(images, (reach_x, reach_x, reach_y, reach_y))
    top = (strengths[:, 0] * (2 * reach_y + 1)).long().clamp(max=2 * reach_y)
    left = (strengths[:, 1] * (2 * reach_x + 1)).long().clamp(max=2 * reach_x)
    rows = top[:, None, None] + torch.arange(height, device=images.device)[None, :, None]
    columns = left[:, None, None] + torch.arange(width, device=images.device)[None, None, :]
    which = torch.arange(batch, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)


def _cutout_mask(images: Tensor, strengths: Tensor, ratio: float) -> Tensor:
    """0 inside a square of `ratio` of the side around a random centre, else 1."""
    _, _, height, width = images.shape
    rows = torch.arange(height, device=images.device)[None, None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, None, :]
    centre_y = (strengths[:, 0, None, None, None] * height).floor()
    centre_x = (strengths[:, 1, None, None, None] * width).floor()
    inside = (rows - centre_y).abs() * 2 <= height * ratio
    inside = inside & ((columns - centre_x).abs() * 2 <= width * ratio)
    return (~inside).to(images.dtype)
