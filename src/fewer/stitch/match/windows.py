"""Strips as networks see them: ends repeated, cut to their stride, in windows; and back to strip columns."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from fewer.stitch.match.coarse import MULTIPLE
from fewer.stitch.match.features import StripView
from fewer.stitch.match.pool import Matches
from fewer.stitch.unfold.strip import PAD, pad_round

Coarse = tuple[np.ndarray, np.ndarray, np.ndarray]
WINDOW = 512
OVERLAP = 0.25


def windows(width: int, height: int, always: bool = False) -> Iterator[tuple[int, int]]:
    """Column ranges: the whole strip, or overlapping windows when it is more than four times as wide as
    high, or `always`.
    """
    if width <= WINDOW or (width <= 4 * height and not always):
        yield 0, width
        return
    step = int(WINDOW * (1 - OVERLAP))
    for start in range(0, width, step):
        stop = min(start + WINDOW, width)
        yield max(0, stop - WINDOW), stop
        if stop == width:
            return


def own_columns(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The columns of each window that are its own: where two overlap, each has its nearer half."""
    middles = [(before[1] + after[0]) // 2 for before, after in pairwise(ranges)]
    return list(zip([ranges[0][0], *middles], [*middles, ranges[-1][1]], strict=True))


def padded_strip(grey: np.ndarray) -> np.ndarray:
    """Strip with its ends repeated, cut to multiples of the stride."""
    height, width = cut_size(grey.shape)
    return np.ascontiguousarray(pad_round(grey)[:height, :width])


def cut_size(size: Sequence[int]) -> tuple[int, int]:
    """Of a strip of this size, padded and cut."""
    return size[0] // MULTIPLE * MULTIPLE, (size[1] + 2 * PAD) // MULTIPLE * MULTIPLE


def unpadded(
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]], new: StripView, old: StripView, name: str
) -> Matches:
    """Back to strip columns; queries of the padding and points outside the masks go."""
    if not found:
        return Matches.empty()
    p, q, confidence = (np.concatenate(parts) for parts in zip(*found, strict=True))
    width = new.grey.shape[1]
    p, q = p - np.array([PAD, 0]), q - np.array([PAD, 0])
    keep = (p[:, 0] >= 0) & (p[:, 0] < width)
    p, q, confidence = p[keep], q[keep], confidence[keep]
    q[:, 0] = np.mod(q[:, 0], width)
    keep = seen(p, new) & seen(q, old)
    return Matches.of(p[keep], q[keep], confidence[keep], name)


def seen(xy: np.ndarray, view: StripView) -> np.ndarray:
    height, width = view.grey.shape
    inside = (xy[:, 0] >= 0) & (xy[:, 0] < width) & (xy[:, 1] >= 0) & (xy[:, 1] < height)
    out = inside.copy()
    place = xy[inside].astype(int)
    out[inside] = view.mask[place[:, 1], place[:, 0]]
    return out
