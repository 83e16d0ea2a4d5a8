"""Splitting strips into bands of detail by matrix products.

`mosaic.canvas` shrinks, blurs and enlarges a strip with OpenCV. All that is linear along either axis, so each
axis has one matrix, made by sending unit impulses through OpenCV itself.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.stitch.mosaic.canvas import BAND_SIGMAS


@dataclass(frozen=True, slots=True)
class Blur:
    """Matrices of one blur, for strips of one size: down to the small blurred picture, and up again (None
    where it is not smaller).
    """

    down: tuple[Float[Tensor, "small_height height"], Float[Tensor, "small_width width"]]
    up: tuple[Float[Tensor, "height small_height"], Float[Tensor, "width small_width"]] | None

    def inside(
        self, strips: Float[Tensor, "frames 3 height width"], seen: Float[Tensor, "frames 1 height width"]
    ) -> Float[Tensor, "frames 3 height width"]:
        """Gaussian of the seen pixels only, periodic along the columns."""
        blurred = _both(torch.cat([strips * seen, seen], dim=1), self.down)
        lower = blurred[:, :3] / blurred[:, 3:].clamp(min=1e-3)
        return lower if self.up is None else _both(lower, self.up)


def blurs(height: int, width: int, bands: int, device: torch.device) -> list[Blur]:
    """One for each step from a band to the next."""
    return [_blur(height, width, sigma, device) for sigma in BAND_SIGMAS[: bands - 1]]


def split(
    strips: Float[Tensor, "frames 3 height width"], weight: Float[Tensor, "frames height width"],
    steps: list[Blur],
) -> list[Float[Tensor, "frames 3 height width"]]:  # fmt: skip
    """Bands, finest first; their sum is the strip."""
    seen, levels = (weight > 0).to(strips)[:, None], []
    for step in steps:
        lower = step.inside(strips, seen)
        levels.append(strips - lower)
        strips = lower
    return [*levels, strips]


def _both(planes: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
    return matrices[0] @ planes @ matrices[1].mT


def _blur(height: int, width: int, sigma: float, device: torch.device) -> Blur:
    pad, shrink = int(3 * sigma), max(1, int(sigma / 1.5))
    rows, columns = np.eye(height, dtype=np.float32), np.eye(width, dtype=np.float32)
    columns = cv2.copyMakeBorder(columns, 0, 0, pad, pad, cv2.BORDER_WRAP)
    downs, ups = [], []
    for impulses, cut in ((rows, 0), (columns, pad)):
        size = impulses.shape[1]
        small = -(-size // shrink)
        if shrink > 1:
            impulses = cv2.resize(impulses, (small, len(impulses)), interpolation=cv2.INTER_AREA)
        taps = round(8 * sigma / shrink + 1) | 1
        blurred = cv2.GaussianBlur(impulses, (taps, 1), sigma / shrink)
        downs.append(blurred.T if shrink > 1 else blurred[:, cut : size - cut].T)
        enlarged = cv2.resize(np.eye(small, dtype=np.float32), (size, small), interpolation=cv2.INTER_LINEAR)
        ups.append(enlarged[:, cut : size - cut].T)

    def on_device(pair: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        first, second = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in pair)
        return first, second

    return Blur(on_device(downs), on_device(ups) if shrink > 1 else None)
