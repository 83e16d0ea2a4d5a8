"""Density-weighted homography optimisation (DWHO) of one pair of strips.

The released code of the paper (arXiv 2410.01148) has plain RANSAC; this is our own definition of the step
it names. Order: weights from density (consensus) -> weighted MSAC -> density again over the inliers
(balanced) ->
robust LM -> sanity checks, falling back from a homography to affine, stretch and shift with the same
weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from fewer.stitch.homography.density import density_weights
from fewer.stitch.homography.project import apply, fit_affine, fit_shift, fit_stretch, symmetric_error
from fewer.stitch.homography.refine import corner_sigma, refine
from fewer.stitch.homography.sample import weighted_msac
from fewer.stitch.match.pool import displacement
from fewer.stitch.options import HomographyOptions

Model = Literal["homography", "affine", "stretch", "shift", "failed"]


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
    width, height = size
    failed = PairFit("failed", np.eye(3), np.zeros(len(p), bool), np.zeros(len(p)), np.nan, np.nan, np.nan)
    if len(p) < options.min_matches:
        return failed
    random = np.random.default_rng(list(seed))
    # columns are periodic: bring q next to p + shift once, then work in the plane
    q = p + shift + displacement(p + shift, q, width)
    consensus = density_weights(p, q, confidence, width, options.sample_gamma, options)
    start = weighted_msac(p, q, consensus, options, random)
    if start is None:
        start = fit_shift(p, q, consensus)
    inlier = symmetric_error(start, p, q) < options.threshold
    if inlier.sum() < options.min_matches:
        return failed
    weight = np.zeros(len(p))
    weight[inlier] = density_weights(
        p[inlier], q[inlier], confidence[inlier], width, options.fit_gamma, options
    )
    model, homography, sigma = _best_model(start, shift, p, q, inlier, weight, size, options)
    if model == "failed":
        return failed
    error = symmetric_error(homography, p, q)
    inlier = error < options.threshold
    rmse = _forward_rmse(homography, p[inlier], q[inlier])
    unseen = np.nan
    if held_out and inlier.sum() >= 20:
        test = inlier & (random.uniform(size=len(p)) < 0.2)
        train = inlier & ~test
        again = refine(
            homography, shift, p[train], q[train], np.maximum(weight[train], 1e-3), width, height, options
        )
        unseen = _forward_rmse(again.homography, p[test], q[test]) if test.any() else np.nan
    return PairFit(model, homography, inlier, np.where(inlier, weight, 0.0), rmse, unseen, sigma)


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


def _best_model(
    start: np.ndarray, shift: np.ndarray, p: np.ndarray, q: np.ndarray, inlier: np.ndarray, weight:
    np.ndarray, size: tuple[int, int], options: HomographyOptions,
) -> tuple[Model, np.ndarray, float]:  # fmt: skip
    width, height = size
    a, b, w = p[inlier], q[inlier], weight[inlier]
    if _supported(p, inlier, width, options):
        refined = refine(start, shift, a, b, w, width, height, options)
        close = symmetric_error(refined.homography, p, q) < options.threshold
        if is_sound(refined.homography, width, height) and _supported(p, close, width, options):
            return "homography", refined.homography, corner_sigma(refined, width, height)
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


def _forward_rmse(homography: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    if not len(p):
        return float("nan")
    return float(np.sqrt(((apply(homography, p) - q) ** 2).sum(axis=1).mean()))
