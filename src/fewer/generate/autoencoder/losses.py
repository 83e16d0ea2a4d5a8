"""Reconstruction losses that need no weights: pixels, image gradients, and a Laplacian pyramid.

The paper trains with L1 + LPIPS; LPIPS needs a VGG whose weights the user must bring (`perceptual.py`).
The two other terms here stand in for it: both punish blur more than a shift in colour.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional

Image = Float[Tensor, "batch channels height width"]
Scalar = Float[Tensor, ""]
Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionWeights:
    """How much each term counts."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    pixels: Weight = 1.0
    """Mean absolute difference of pixels."""
    gradients: Weight = 0.5
    """The same of horizontal and vertical differences."""
    pyramid: Weight = 0.5
    """The same of the bands of a 3-level Laplacian pyramid."""


def reconstruction_loss(
    reconstruction: Image, image: Image, weights: ReconstructionWeights | None = None
) -> Scalar:
    """Weighted sum of the three terms, in fp32, for images in [-1, 1]."""
    weights = weights or ReconstructionWeights()
    reconstruction, image = reconstruction.float(), image.float()
    loss = weights.pixels * functional.l1_loss(reconstruction, image)
    if weights.gradients:
        loss = loss + weights.gradients * gradient_loss(reconstruction, image)
    if weights.pyramid:
        loss = loss + weights.pyramid * pyramid_loss(reconstruction, image)
    return loss


def gradient_loss(reconstruction: Image, image: Image) -> Scalar:
    """L1 between the differences of neighbouring pixels, along rows plus along columns."""
    difference = reconstruction - image
    total = difference.new_zeros(())
    for axis in (2, 3):
        if difference.shape[axis] > 1:
            total = total + difference.diff(dim=axis).abs().mean()
    return total


def pyramid_loss(reconstruction: Image, image: Image, levels: int = 3) -> Scalar:
    """Mean over the bands of a Laplacian pyramid of the L1 in that band (the pyramid is linear)."""
    difference = reconstruction - image
    total = difference.new_zeros(())
    bands = 0
    for _ in range(levels):
        if min(difference.shape[2:]) < 2:
            break
        small = functional.avg_pool2d(difference, 2, ceil_mode=True, count_include_pad=False)
        large = functional.interpolate(small, size=difference.shape[2:], mode="bilinear", align_corners=False)
        total = total + (difference - large).abs().mean()
        bands += 1
        difference = small
    return total / max(bands, 1)
