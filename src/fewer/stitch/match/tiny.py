"""The small LoFTRs as matchers: cells from the network, sub-pixel places from Lucas-Kanade."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewer.stitch.device.flow import track_both_ways
from fewer.stitch.match.coarse import MULTIPLE, pick_matches, pick_together
from fewer.stitch.match.features import StripView
from fewer.stitch.match.loftr import CoarseLoFTR
from fewer.stitch.match.pool import Matches
from fewer.stitch.match.windows import Coarse, cut_size, own_columns, padded_strip, unpadded, windows

Item = TypeVar("Item")
_TRUST_BACK = 1.0  # pixels: forward and backward tracking must agree
_GROUP = 16  # strips that a GPU looks at together
_GROUP_HERE = 4  # the same on a processor, where nothing is gained by it


def refine_by_tracking(
    first: UInt8[np.ndarray, "height width"],
    second: UInt8[np.ndarray, "height width"],
    p: Float[np.ndarray, "matches 2"],
    q: Float[np.ndarray, "matches 2"],
) -> tuple[np.ndarray, np.ndarray]:
    """Sub-pixel q by Lucas-Kanade from the coarse guess; True where tracking back returns within a pixel."""
    settings = {
        "winSize": (21, 21),
        "maxLevel": 1,
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
        "criteria": (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.01),
    }
    start, guess = p.astype(np.float32)[:, None], q.astype(np.float32)[:, None]
    there, ok, _ = cv2.calcOpticalFlowPyrLK(first, second, start, guess.copy(), **settings)
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(second, first, there, start.copy(), **settings)
    off = np.hypot(*(back - start)[:, 0].T)
    good = (ok[:, 0] > 0) & (ok_back[:, 0] > 0) & (off < _TRUST_BACK)
    return there[:, 0].astype(np.float64), good


@dataclass(frozen=True, slots=True)
class _Looked:
    """What a network made of a strip: tokens of each window, and the padded strip where it is tracked."""

    tokens: list[Tensor]
    strip: Tensor


class TinyMatcher:
    """A small LoFTR: cells from the network, sub-pixel places from tracking. On a GPU strips go through it in
    groups of one size, filled up with copies, so that a strip's result does not hang on its company; they
    are tracked there too (`device.flow`), on a processor by OpenCV.
    """

    def __init__(
        self, model: CoarseLoFTR, threshold: float, name: str, together: int | None = None,
        batched: bool | None = None,
    ) -> None:  # fmt: skip
        """`batched` tracks in groups; without it the device decides."""
        self._model, self._threshold, self._name = model, threshold, name
        self._device = next(model.parameters()).device
        self._batched = self._device.type == "cuda" if batched is None else batched
        usual = (_GROUP if self._device.type == "cuda" else _GROUP_HERE) if self._batched else 1
        self.together = usual if together is None else together

    def look(self, views: Sequence[StripView]) -> None:
        """The network's tokens of each window of each strip, made once."""
        new = [view for view in views if self._name not in view.learned]
        for group in _by_size(new, [view.grey.shape for view in new], self.together):
            strips = torch.from_numpy(np.stack([padded_strip(view.grey) for view in group])).to(self._device)
            filled = _filled_up(strips, self.together)[:, None].float() / 255
            tokens: list[list[Tensor]] = [[] for _ in group]
            for start, stop in self._ranges(strips.shape[1:]):
                with torch.inference_mode():
                    cells = self._model.describe(filled[..., start:stop])
                for place, mine in enumerate(tokens):
                    # a copy: part of the group's tensor would live as long as any of its strips
                    mine.append(cells[place : place + 1].clone())
            for view, mine, strip in zip(group, tokens, strips, strict=True):
                view.learned[self._name] = _Looked(mine, strip.clone() if self._batched else strip[:0])

    def propose(self, pairs: Sequence[tuple[StripView, StripView]]) -> list[list[Coarse]]:
        """For each pair, for each window, matches in pixels of the window (see `pick_matches`); when they are
        tracked in groups, in pixels of the padded strip and final.
        """
        self.look([view for pair in pairs for view in pair])
        out: list[list[Coarse]] = []
        sizes = [(new.grey.shape, old.grey.shape) for new, old in pairs]
        for group in _by_size(pairs, sizes, self.together):
            looked = [[_looked(pair[side], self._name) for pair in group] for side in (0, 1)]
            ranges = self._ranges(cut_size(group[0][0].grey.shape))
            found = []
            for window, (columns, own) in enumerate(zip(ranges, own_columns(ranges), strict=True)):
                sides = [torch.cat([each.tokens[window] for each in side]) for side in looked]
                with torch.inference_mode():
                    confidence = self._model.compare(*(_filled_up(each, self.together) for each in sides))
                    if self._batched:
                        strips = [torch.stack([each.strip for each in side]) for side in looked]
                        found.append(self._tracked(confidence[: len(group)], strips, columns, own))
                        continue
                widths = (columns[1] - columns[0],) * 2
                found.append(
                    pick_matches(confidence[: len(group)], self._model.shape.stride, widths, self._threshold)
                )
            out += [list(each) for each in zip(*found, strict=True)]
        return out

    def __call__(self, new: StripView, old: StripView, proposed: object = None) -> Matches:
        """Matches in strip pixels."""
        coarse = proposed if isinstance(proposed, list) else self.propose([(new, old)])[0]
        if self._batched:
            return unpadded(coarse, new, old, self._name)
        first, second = padded_strip(new.grey), padded_strip(old.grey)
        found, ranges = [], self._ranges(first.shape)
        for (start, stop), (low, high), (p, q, sure) in zip(ranges, own_columns(ranges), coarse, strict=True):
            part = slice(start, stop)
            own = (p[:, 0] + start >= low) & (p[:, 0] + start < high)
            p, q, confidence = p[own], q[own], sure[own]
            if not len(p):
                continue
            q, good = refine_by_tracking(first[:, part], second[:, part], p, q)
            offset = np.array([start, 0])
            found.append((p[good] + offset, q[good] + offset, confidence[good]))
        return unpadded(found, new, old, self._name)

    def _tracked(
        self, confidence: Tensor, strips: list[Tensor], columns: tuple[int, int], own: tuple[int, int]
    ) -> list[Coarse]:
        """Picks cells and tracks them, all pairs at once; one copy to the processor."""
        start, stop = columns
        stride = self._model.shape.stride
        p, q, sure = pick_together(confidence, stride, (stop - start) // stride, self._threshold)
        mine = (sure > 0) & (p[..., 0] + start >= own[0]) & (p[..., 0] + start < own[1])
        parts = [_filled_up(strip, self.together)[..., start:stop].float() for strip in strips]
        p, q, sure, mine = (_filled_up(each, self.together) for each in (p, q, sure, mine))
        q, good = track_both_ways(*parts, p, q, _TRUST_BACK)
        offset = torch.tensor([start, 0.0], device=p.device)
        table = torch.cat([p + offset, q + offset, sure[..., None], (good & mine)[..., None]], dim=-1)
        rows = [each[each[:, 5] > 0] for each in table[: len(confidence)].cpu().numpy().astype(np.float64)]
        return [(each[:, :2], each[:, 2:4], each[:, 4]) for each in rows]

    def _ranges(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Windows of a strip. Cells of 8 pixels are many; their network was trained on windows as wide."""
        return list(windows(size[1], size[0], always=self._model.shape.stride < MULTIPLE))


def _by_size(items: Sequence[Item], sizes: Sequence[object], most: int) -> Iterator[list[Item]]:
    """Runs of neighbours of one size, at most `most` each."""
    for _, run in groupby(zip(sizes, items, strict=True), key=lambda pair: pair[0]):
        alike = [item for _, item in run]
        for start in range(0, len(alike), most):
            yield alike[start : start + most]


def _filled_up(parts: Tensor, count: int) -> Tensor:
    """`count` entries: the last one stands in for those that are missing."""
    missing = count - len(parts)
    return parts if missing <= 0 else torch.cat([parts, parts[-1:].expand(missing, *parts.shape[1:])])


def _looked(view: StripView, name: str) -> _Looked:
    looked = view.learned[name]
    assert isinstance(looked, _Looked)
    return looked
