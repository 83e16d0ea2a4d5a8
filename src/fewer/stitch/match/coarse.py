"""The coarse step of small LoFTRs: two grey pictures -> cells that show the same spot, and how surely."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewer.stitch.match.loftr import CoarseLoFTR

MULTIPLE = 16  # sides of pictures for every network here
_ROWS = 256


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
        confidence = model.compare(first_cells, second_cells)
    widths = (first.shape[1], second.shape[1])
    return pick_matches(confidence, model.shape.stride, widths, threshold)[0]


def pick_matches(
    confidence: Float[Tensor, "pairs tokens tokens2"], stride: int, widths: tuple[int, int], threshold: float
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each pair of pictures, `widths` pixels wide: cells that are each other's best, and sure enough."""
    best = confidence.max(dim=2)
    back = confidence.max(dim=1).indices.gather(1, best.indices)
    # everything to the CPU at once: on a GPU each answer is a wait
    values, columns, back = (each.cpu() for each in (best.values, best.indices, back))
    out = []
    for mine, column, again in zip(values, columns, back, strict=True):
        rows = torch.nonzero((again == torch.arange(len(again))) & (mine > threshold))[:, 0]
        p = _centres(rows, widths[0] // stride, stride)
        q = _centres(column[rows], widths[1] // stride, stride)
        out.append((p, q, mine[rows].numpy().astype(float)))
    return out


def pick_together(
    confidence: Float[Tensor, "pairs tokens tokens2"], stride: int, across: int, threshold: float
) -> tuple[Float[Tensor, "pairs most 2"], Float[Tensor, "pairs most 2"], Float[Tensor, "pairs most"]]:
    """`pick_matches` without leaving the device: rows of confidence zero fill up pairs with fewer matches.
    Pictures are `across` cells wide.
    """
    best = confidence.max(dim=2)
    back = confidence.max(dim=1).indices.gather(1, best.indices)
    cells = torch.arange(confidence.shape[1], device=confidence.device)
    sure = torch.where((back == cells) & (best.values > threshold), best.values, 0.0)
    # round numbers of rows: what is computed from them hardly hangs on the other pairs then
    most = min(-(-int((sure > 0).sum(dim=1).max()) // _ROWS) * _ROWS, len(cells))
    rows = torch.argsort((sure == 0).to(torch.uint8), dim=1, stable=True)[:, :most]
    columns = best.indices.gather(1, rows)
    p, q = (torch.stack([each % across, each // across], dim=-1).float() * stride for each in (rows, columns))
    return p, q, sure.gather(1, rows)


def as_input(grey: np.ndarray) -> Float[Tensor, "1 1 height width"]:
    height, width = (side // MULTIPLE * MULTIPLE for side in grey.shape)
    return torch.from_numpy(np.ascontiguousarray(grey[:height, :width])).float()[None, None] / 255


def _centres(cells: Tensor, across: int, stride: int) -> np.ndarray:
    """Corners of the cells in pixels, as the networks are trained."""
    return torch.stack([cells % across, cells // across], dim=1).numpy().astype(np.float64) * stride
