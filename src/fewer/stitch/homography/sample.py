"""Weighted MSAC: the robust start of the homography."""

import numpy as np
from jaxtyping import Float

from fewer.stitch.homography.project import apply, fit_linear, normaliser, symmetric_error
from fewer.stitch.options import HomographyOptions

_BATCH = 20
_CONFIDENCE = 0.999


def weighted_msac(
    p: Float[np.ndarray, "matches 2"],
    q: Float[np.ndarray, "matches 2"],
    weight: Float[np.ndarray, "matches"],
    options: HomographyOptions,
    random: np.random.Generator,
) -> Float[np.ndarray, "3 3"] | None:
    """Samples of four with probability ~ weight; score sum w min(e^2, T^2); local optimisation at each new
    best.

    Stops when 0.999 sure, at the latest after `max_samples`. None when no sample made sense.
    """
    threshold = options.threshold
    best, best_score = None, np.inf
    tried, needed = 0, options.max_samples
    while tried < min(needed, options.max_samples):
        chosen = _draw(weight, random)
        chosen = chosen[_sound(p[chosen], q[chosen])]
        tried += _BATCH
        candidates = _four_point(p[chosen], q[chosen])
        if not len(candidates):
            continue
        errors = symmetric_error(candidates, p, q)
        scores = (np.minimum(errors, threshold) ** 2) @ weight
        top = int(scores.argmin())
        if scores[top] >= best_score:
            continue
        best, best_score = candidates[top], float(scores[top])
        for _ in range(2):
            inlier = symmetric_error(best, p, q) < threshold
            if inlier.sum() < 6:
                break
            better = fit_linear(p[inlier], q[inlier], weight[inlier])
            if better is None or abs(np.linalg.det(better)) < 1e-6:
                break
            score = float((np.minimum(symmetric_error(better, p, q), threshold) ** 2) @ weight)
            if score >= best_score:
                break
            best, best_score = better, score
        share = float(weight[symmetric_error(best, p, q) < threshold].sum() / weight.sum())
        hit = min(max(share**4, 1e-6), 1 - 1e-9)
        needed = int(np.ceil(np.log(1 - _CONFIDENCE) / np.log(1 - hit)))
    return best


def _draw(weight: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rows of four different matches: the four largest of log w + Gumbel noise are such a draw."""
    keys = np.log(np.maximum(weight, 1e-12)) + random.gumbel(size=(_BATCH, len(weight)))
    return np.argpartition(-keys, 4, axis=1)[:, :4] if len(weight) > 4 else np.tile(np.arange(4), (_BATCH, 1))


def _sound(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """No three points nearly on a line, and none of the four triangles turned over."""
    good = np.ones(len(p), bool)
    for a, b, c in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)):
        before, after = _area(p[:, a], p[:, b], p[:, c]), _area(q[:, a], q[:, b], q[:, c])
        good &= (np.abs(before) > 20) & (np.abs(after) > 20) & (before * after > 0)
    return good


def _area(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])


def _four_point(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Homographies through four points each (batch, 4, 2)."""
    if not len(p):
        return np.zeros((0, 3, 3))
    left, right_side = normaliser(p.reshape(-1, 2)), normaliser(q.reshape(-1, 2))
    (x, y), (u, v) = np.moveaxis(apply(left, p), -1, 0), np.moveaxis(apply(right_side, q), -1, 0)
    zero, one = np.zeros_like(x), np.ones_like(x)
    rows = np.concatenate(
        [
            np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=-1),
            np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=-1),
        ],
        axis=1,
    )
    right = np.concatenate([u, v], axis=1)
    solvable = np.abs(np.linalg.det(rows)) > 1e-9
    if not solvable.any():
        return np.zeros((0, 3, 3))
    solution = np.linalg.solve(rows[solvable], right[solvable][..., None])[..., 0]
    out = np.concatenate([solution, np.ones((len(solution), 1))], axis=1).reshape(-1, 3, 3)
    out = np.linalg.inv(right_side) @ out @ left
    out = out[np.abs(out[:, 2, 2]) > 1e-9]
    out = out / out[:, 2:, 2:]
    return out[np.isfinite(out).all(axis=(1, 2)) & (np.abs(np.linalg.det(out)) > 1e-6)]
