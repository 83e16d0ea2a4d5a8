"""Density-weighted homography optimisation (DWHO) of pairs of strips.

The released code of the paper (arXiv 2410.01148) has plain RANSAC; this is our own definition of the step
it names. Order: weights from density (consensus) -> weighted MSAC -> density again over the inliers
(balanced) ->
robust LM -> sanity checks, falling back from a homography to affine, stretch and shift with the same
weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from fewer.stitch.homography.density import density_weights
from fewer.stitch.homography.project import apply, fit_affine, fit_shift, fit_stretch, symmetric_error
from fewer.stitch.homography.refine import Refined, corner_sigma, refine_all
from fewer.stitch.homography.sample import weighted_msac
from fewer.stitch.match.pool import displacement
from fewer.stitch.options import HomographyOptions

Model = Literal["homography", "affine", "stretch", "shift", "failed"]
_TOGETHER = 16
_HELD_OUT = 0.2


@dataclass(frozen=True, slots=True)
class PairMatches:
    """What a pair brings: matches in strip pixels, the winning displacement, its seed, and whether to hold
    some back.
    """

    p: Float[np.ndarray, "matches 2"]
    q: Float[np.ndarray, "matches 2"]
    confidence: Float[np.ndarray, "matches"]
    shift: Float[np.ndarray, "2"]
    seed: tuple[int, ...] = (0,)
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class PairFit:
    """H maps the new strip to the old one; `weight` is that of the final fit (zero for outliers)."""

    model: Model
    homography: Float[np.ndarray, "3 3"]
    inlier: Bool[np.ndarray, "matches"]
    weight: Float[np.ndarray, "matches"]
    rmse: float
    held_out_rmse: float
    sigma: float

    @property
    def ok(self) -> bool:
        return self.model != "failed"


@dataclass(frozen=True, slots=True)
class _Start:
    """A pair after MSAC: its q brought next to p + shift, inliers, their weights, and who is held out."""

    homography: Float[np.ndarray, "3 3"]
    q: Float[np.ndarray, "matches 2"]
    inlier: Bool[np.ndarray, "matches"]
    weight: Float[np.ndarray, "matches"]
    test: Bool[np.ndarray, "matches"]


def fit_pair(
    p: Float[np.ndarray, "matches 2"],
    q: Float[np.ndarray, "matches 2"],
    confidence: Float[np.ndarray, "matches"],
    shift: Float[np.ndarray, "2"],
    size: tuple[int, int],
    options: HomographyOptions,
    seed: tuple[int, ...] = (0,),
    held_out: bool = False,
) -> PairFit:
    """`size` is (width, height); `shift` the winning displacement. Never raises for bad matches: the model
    is `failed`.

    With `held_out`, a fifth of the matches is kept from a second fit, and its error is reported.
    """
    return fit_all([PairMatches(p, q, confidence, shift, seed, held_out)], size, options)[0]


def fit_all(pairs: Sequence[PairMatches], size: tuple[int, int], options: HomographyOptions) -> list[PairFit]:
    """`fit_pair` of many pairs; sixteen at a time are refined side by side."""
    fits: list[PairFit] = []
    for first in range(0, len(pairs), _TOGETHER):
        group = pairs[first : first + _TOGETHER]
        starts = [_begin(pair, size, options) for pair in group]
        refined = iter(_refine_together(group, starts, size, options))
        for pair, start in zip(group, starts, strict=True):
            if start is None:
                fits.append(_failed(len(pair.p)))
                continue
            full = next(refined)
            fits.append(
                _finish(pair, start, full, next(refined) if start.test.any() else None, size, options)
            )
    return fits


def is_sound(homography: Float[np.ndarray, "3 3"], width: int, height: int) -> bool:
    """Area factor in [0.5, 2], perspective below 0.2 across the strip, corners still convex."""
    if not np.isfinite(homography).all():
        return False
    if abs(homography[2, 0]) * width >= 0.2 or abs(homography[2, 1]) * height >= 0.2:
        return False
    if min(homography[0, 0], homography[1, 1]) <= 0 or not 0.5 <= np.linalg.det(homography[:2, :2]) <= 2:
        return False
    corners = apply(homography, np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64))
    side = np.roll(corners, -1, axis=0) - corners
    turn = side[:, 0] * np.roll(side[:, 1], -1) - side[:, 1] * np.roll(side[:, 0], -1)
    return bool((turn > 0).all())


def _begin(pair: PairMatches, size: tuple[int, int], options: HomographyOptions) -> _Start | None:
    """Weights from density, weighted MSAC, weights again over the inliers; None when the pair fails."""
    p, width = pair.p, size[0]
    if len(p) < options.min_matches:
        return None
    random = np.random.default_rng(list(pair.seed))
    # columns are periodic: bring q next to p + shift once, then work in the plane
    q = p + pair.shift + displacement(p + pair.shift, pair.q, width)
    consensus = density_weights(p, q, pair.confidence, width, options.sample_gamma, options)
    start = weighted_msac(p, q, consensus, options, random)
    if start is None:
        start = fit_shift(p, q, consensus)
    inlier = symmetric_error(start, p, q) < options.threshold
    if inlier.sum() < options.min_matches:
        return None
    weight = np.zeros(len(p))
    weight[inlier] = density_weights(
        p[inlier], q[inlier], pair.confidence[inlier], width, options.fit_gamma, options
    )
    test = np.zeros(len(p), bool)
    if pair.held_out and inlier.sum() >= 20:
        test = inlier & (random.uniform(size=len(p)) < _HELD_OUT)
    return _Start(start, q, inlier, weight, test)


def _refine_together(
    pairs: Sequence[PairMatches], starts: Sequence[_Start | None], size: tuple[int, int],
    options: HomographyOptions,
) -> list[Refined]:  # fmt: skip
    """Every started pair on all its inliers and, after it, without the held-out ones if it has any."""
    jobs = []
    for pair, start in zip(pairs, starts, strict=True):
        if start is not None:
            jobs.append((pair, start, start.inlier))
            if start.test.any():
                jobs.append((pair, start, start.inlier & ~start.test))
    if not jobs:
        return []
    most = max(int(rows.sum()) for _, _, rows in jobs)
    p, q, weight = np.zeros((len(jobs), most, 2)), np.zeros((len(jobs), most, 2)), np.zeros((len(jobs), most))
    for job, (pair, start, rows) in enumerate(jobs):
        count = int(rows.sum())
        p[job, :count], q[job, :count] = pair.p[rows], start.q[rows]
        weight[job, :count] = np.maximum(start.weight[rows], 1e-3)
    starts_at = np.stack([start.homography for _, start, _ in jobs])
    shifts = np.stack([pair.shift for pair, _, _ in jobs])
    return refine_all(starts_at, shifts, p, q, weight, *size, options)


def _finish(
    pair: PairMatches, start: _Start, full: Refined, without: Refined | None, size: tuple[int, int],
    options: HomographyOptions,
) -> PairFit:  # fmt: skip
    p, q = pair.p, start.q
    model, homography, sigma = _best_model(full, p, q, start, size, options)
    if model == "failed":
        return _failed(len(p))
    inlier = symmetric_error(homography, p, q) < options.threshold
    rmse = _forward_rmse(homography, p[inlier], q[inlier])
    test = start.test & inlier
    unseen = np.nan if without is None else _forward_rmse(without.homography, p[test], q[test])
    weight = np.where(inlier, start.weight, 0.0)
    return PairFit(model, homography, inlier, weight, rmse, unseen, sigma)


def _best_model(
    refined: Refined, p: np.ndarray, q: np.ndarray, start: _Start, size: tuple[int, int],
    options: HomographyOptions,
) -> tuple[Model, np.ndarray, float]:  # fmt: skip
    width, height = size
    inlier = start.inlier
    if _supported(p, inlier, width, options):
        close = symmetric_error(refined.homography, p, q) < options.threshold
        if is_sound(refined.homography, width, height) and _supported(p, close, width, options):
            return "homography", refined.homography, corner_sigma(refined, width, height)
    a, b, w = p[inlier], q[inlier], start.weight[inlier]
    simpler: tuple[tuple[Model, Callable[..., np.ndarray]], ...] = (
        ("affine", fit_affine),
        ("stretch", fit_stretch),
        ("shift", fit_shift),
    )
    for model, fit in simpler:
        simple = fit(a, b, w)
        close = int((symmetric_error(simple, p, q) < options.threshold).sum())
        enough = (
            options.min_matches if model == "shift" else max(options.min_inliers, int(0.8 * inlier.sum()))
        )
        if is_sound(simple, width, height) and close >= enough:
            spread = _forward_rmse(simple, a, b) / np.sqrt(max(len(a), 1))
            return model, simple, float(spread)
    return "failed", np.eye(3), np.nan


def _supported(p: np.ndarray, inlier: np.ndarray, width: int, options: HomographyOptions) -> bool:
    count = int(inlier.sum())
    if count < options.min_inliers or count < options.min_inlier_share * len(p):
        return False
    sectors = np.unique((p[inlier, 0] * 16 / width).astype(int))
    return len(sectors) >= options.min_sectors


def _failed(count: int) -> PairFit:
    return PairFit("failed", np.eye(3), np.zeros(count, bool), np.zeros(count), np.nan, np.nan, np.nan)


def _forward_rmse(homography: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    if not len(p):
        return float("nan")
    return float(np.sqrt(((apply(homography, p) - q) ** 2).sum(axis=1).mean()))
