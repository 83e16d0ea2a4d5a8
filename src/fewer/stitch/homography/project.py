"""Plane projective maps: applying them, their error both ways, fitting them by weighted linear least
squares.
"""

import numpy as np
from jaxtyping import Float


def apply(
    homography: Float[np.ndarray, "*batch 3 3"], points: Float[np.ndarray, "*sets matches 2"]
) -> Float[np.ndarray, "..."]:
    """pi(H p). A point on the horizon comes out huge, never NaN."""
    moved = points @ np.swapaxes(homography[..., :2], -1, -2) + homography[..., None, :, 2]
    bottom = moved[..., 2:]
    bottom = np.where(np.abs(bottom) < 1e-9, np.where(bottom < 0, -1e-9, 1e-9), bottom)
    return moved[..., :2] / bottom


def symmetric_error(
    homography: Float[np.ndarray, "*batch 3 3"],
    p: Float[np.ndarray, "matches 2"],
    q: Float[np.ndarray, "matches 2"],
) -> Float[np.ndarray, "*batch matches"]:
    """Root of the mean of both squared transfer errors."""
    there = ((apply(homography, p) - q) ** 2).sum(axis=-1)
    back = ((apply(np.linalg.inv(homography), q) - p) ** 2).sum(axis=-1)
    return np.sqrt(np.minimum((there + back) / 2, 1e12))


def normaliser(points: Float[np.ndarray, "matches 2"]) -> Float[np.ndarray, "3 3"]:
    """Similarity that moves points to mean zero and mean distance sqrt(2) (Hartley)."""
    centre = points.mean(axis=0)
    size = np.sqrt(2) / max(float(np.hypot(*(points - centre).T).mean()), 1e-9)
    return np.array([[size, 0, -size * centre[0]], [0, size, -size * centre[1]], [0, 0, 1]])


def fit_linear(
    p: Float[np.ndarray, "matches 2"], q: Float[np.ndarray, "matches 2"], weight: Float[np.ndarray, "matches"]
) -> Float[np.ndarray, "3 3"] | None:
    """Normalised weighted DLT, h33 = 1; None when degenerate."""
    left, right = normaliser(p), normaliser(q)
    x, y = apply(left, p).T
    u, v = apply(right, q).T
    zero, one, root = np.zeros_like(x), np.ones_like(x), np.sqrt(weight)
    rows = np.concatenate(
        [
            np.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], axis=1) * root[:, None],
            np.stack([zero, zero, zero, x, y, one, -v * x, -v * y, -v], axis=1) * root[:, None],
        ]
    )
    _, vectors = np.linalg.eigh(rows.T @ rows)
    homography = np.linalg.inv(right) @ vectors[:, 0].reshape(3, 3) @ left
    if not np.isfinite(homography).all() or abs(homography[2, 2]) < 1e-9:
        return None
    return homography / homography[2, 2]


def fit_affine(p: np.ndarray, q: np.ndarray, weight: np.ndarray) -> Float[np.ndarray, "3 3"]:
    """Weighted least squares with six parameters."""
    return _fit(p, q, weight, lambda x, y: (np.stack([x, y, x * 0 + 1], 1), np.stack([x, y, x * 0 + 1], 1)))


def fit_stretch(p: np.ndarray, q: np.ndarray, weight: np.ndarray) -> Float[np.ndarray, "3 3"]:
    """Shift along both axes and a scale along y."""
    out = fit_shift(p, q, weight)
    mean_p, mean_q = np.average(p[:, 1], weights=weight), np.average(q[:, 1], weights=weight)
    spread = np.average((p[:, 1] - mean_p) ** 2, weights=weight)
    scale = np.average((p[:, 1] - mean_p) * (q[:, 1] - mean_q), weights=weight) / max(spread, 1e-9)
    out[1, 1], out[1, 2] = scale, mean_q - scale * mean_p
    return out


def fit_shift(p: np.ndarray, q: np.ndarray, weight: np.ndarray) -> Float[np.ndarray, "3 3"]:
    """Weighted mean displacement."""
    out = np.eye(3)
    out[:2, 2] = np.average(q - p, axis=0, weights=weight)
    return out


def _fit(p: np.ndarray, q: np.ndarray, weight: np.ndarray, design) -> np.ndarray:
    root = np.sqrt(weight)
    out = np.eye(3)
    for row, system in enumerate(design(*p.T)):
        out[row] = np.linalg.lstsq(system * root[:, None], q[:, row] * root, rcond=None)[0]
    return out
