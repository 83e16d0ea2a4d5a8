"""The coarse step of small LoFTRs: two grey pictures -> cells that show the same spot, and how surely."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewer.stitch.match.loftr import CoarseLoFTR

MULTIPLE = 16  # sides of pictures for every network here


def coarse_matches(
    model: CoarseLoFTR,
    first: UInt8[np.ndarray, "height width"],
    second: UInt8[np.ndarray, "height width"],
    threshold: float,
    described: tuple[Tensor, Tensor] | None = None,
) -> tuple[Float[np.ndarray, "matches 2"], Float[np.ndarray, "matches 2"], Float[np.ndarray, "matches"]]:
    """Mutual best cells (centres, pixels) above the threshold and their confidence. `described` saves the
    convolutions if both pictures went through them before.
    """
    with torch.inference_mode():
        if described is None:
            device = next(model.parameters()).device
            first_cells, second_cells = (
                model.describe(as_input(each).to(device)) for each in (first, second)
            )
        else:
            first_cells, second_cells = described
        confidence = model.compare(first_cells, second_cells)[0]
    best = confidence.max(dim=1)
    back = confidence.max(dim=0).indices[best.indices]
    # everything to the CPU at once: on a GPU each answer is a wait
    values, columns, back = (each.cpu() for each in (best.values, best.indices, back))
    rows = torch.nonzero((back == torch.arange(len(back))) & (values > threshold))[:, 0]
    columns = columns[rows]
    stride = model.shape.stride
    return (
        _centres(rows, first.shape[1] // stride, stride),
        _centres(columns, second.shape[1] // stride, stride),
        values[rows].numpy().astype(float),
    )


def as_input(grey: np.ndarray) -> Float[Tensor, "1 1 height width"]:
    height, width = (side // MULTIPLE * MULTIPLE for side in grey.shape)
    return torch.from_numpy(np.ascontiguousarray(grey[:height, :width])).float()[None, None] / 255


def _centres(cells: Tensor, across: int, stride: int) -> np.ndarray:
    """Corners of the cells in pixels, as the networks are trained."""
    return torch.stack([cells % across, cells // across], dim=1).numpy().astype(np.float64) * stride
