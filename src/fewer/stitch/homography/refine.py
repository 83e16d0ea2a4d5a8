"""Levenberg-Marquardt on the eight parameters of a homography, robust, weighted, both transfer directions.

Many pairs are refined at once: each step is a handful of array operations over all pairs that still move,
so the cost of a pair is its arithmetic and not that of calling numpy.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from fewer.stitch.homography.project import apply
from fewer.stitch.options import HomographyOptions

_STAGES = ((4.0, 2), (2.0, 2), (1.0, 10))
"""Scale of the robust loss in units of `robust_scale`, and the most steps taken at it."""


@dataclass(frozen=True, slots=True)
class Refined:
    """The homography, the covariance of its eight parameters, and how many steps it took."""

    homography: Float[np.ndarray, "3 3"]
    covariance: Float[np.ndarray, "8 8"]
    steps: int


def refine(
    start: Float[np.ndarray, "3 3"],
    shift: Float[np.ndarray, "2"],
    p: Float[np.ndarray, "matches 2"],
    q: Float[np.ndarray, "matches 2"],
    weight: Float[np.ndarray, "matches"],
    width: int,
    height: int,
    options: HomographyOptions,
) -> Refined:
    """min over H of sum w phi(|pi(H p) - q|) + w phi(|pi(H^-1 q) - p|) + lambda |V (H - H_T)|^2.

    phi is Geman-McClure, its scale going 4c, 2c, c. V penalises perspective (h31 W, h32 H) and shear, in
    the pixels they move a corner by; H_T is the translation by `shift`.
    """
    return refine_all(start[None], shift[None], p[None], q[None], weight[None], width, height, options)[0]


def refine_all(
    start: Float[np.ndarray, "pairs 3 3"],
    shift: Float[np.ndarray, "pairs 2"],
    p: Float[np.ndarray, "pairs matches 2"],
    q: Float[np.ndarray, "pairs matches 2"],
    weight: Float[np.ndarray, "pairs matches"],
    width: int,
    height: int,
    options: HomographyOptions,
) -> list[Refined]:
    """`refine` of several pairs side by side; rows of weight zero fill up pairs with fewer matches."""
    count = len(start)
    parameters = (start / start[:, 2:, 2:]).reshape(count, 9)[:, :8].copy()
    pull = _regulariser(width, height) * (options.regularisation * weight.sum(axis=1, keepdims=True))
    target = np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float64), (count, 1))
    target[:, 2], target[:, 5] = shift.T
    steps, normal = np.zeros(count, int), np.zeros((count, 8, 8))
    damping = np.full(count, 1e-3)
    for stage, most in _STAGES:
        scale = stage * options.robust_scale
        cost, normal, right = _system(parameters, p, q, weight, scale, pull, target)
        moving = np.arange(count)
        for _ in range(most):
            steps[moving] += 1
            trial = parameters[moving] + _step(normal[moving], right[moving], damping[moving])
            new_cost, new_normal, new_right = _system(
                trial, p[moving], q[moving], weight[moving], scale, pull[moving], target[moving]
            )
            better = new_cost <= cost[moving]
            settled = better & (cost[moving] - new_cost < 1e-6 * cost[moving])
            taken = moving[better]
            parameters[taken], cost[taken] = trial[better], new_cost[better]
            normal[taken], right[taken] = new_normal[better], new_right[better]
            damping[taken] = np.maximum(damping[taken] / 10, 1e-9)
            refused = moving[~better]
            damping[refused] = np.minimum(damping[refused] * 10, 1e6)
            moving = moving[~settled]
            if not len(moving):
                break
    return _with_covariance(parameters, normal, p, q, weight, steps, options.robust_scale)


def corner_sigma(refined: Refined, width: int, height: int) -> float:
    """Predicted standard deviation (pixels) of where the strip's corners land: the worst of the four."""
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    _, slope = _forward(refined.homography, corners)
    spread = np.einsum("nab,bc,ndc->nad", slope, refined.covariance, slope)
    return float(np.sqrt(np.max(np.trace(spread, axis1=1, axis2=2))))


def _with_covariance(
    parameters: np.ndarray, normal: np.ndarray, p: np.ndarray, q: np.ndarray, weight: np.ndarray,
    steps: np.ndarray, scale: float,
) -> list[Refined]:  # fmt: skip
    """sigma^2 (J^T W J)^-1 with sigma^2 from the robust residuals and mean weight one."""
    there, back, _, _ = _residuals(parameters, p, q, slopes=False)
    square = np.stack([(there**2).sum(axis=-1), (back**2).sum(axis=-1)], axis=1)
    robust = weight[:, None] / (1 + square / scale**2) ** 2
    total = np.maximum(robust.sum(axis=(1, 2)), 1e-9)
    variance = (robust * square).sum(axis=(1, 2)) / total / 2
    usual = np.maximum(weight.sum(axis=1) / np.maximum((weight > 0).sum(axis=1), 1), 1e-9)
    covariance = variance[:, None, None] * np.linalg.pinv(normal / usual[:, None, None])
    covariance = (covariance + np.swapaxes(covariance, 1, 2)) / 2
    matrices = _matrix(parameters)
    return [Refined(matrices[row], covariance[row], int(steps[row])) for row in range(len(steps))]


def _step(normal: np.ndarray, right: np.ndarray, damping: np.ndarray) -> np.ndarray:
    damped = normal.copy()
    diagonal = np.arange(8)
    damped[:, diagonal, diagonal] *= 1 + damping[:, None]
    damped[:, diagonal, diagonal] += 1e-12
    return np.linalg.solve(damped, right[..., None])[..., 0]


def _matrix(parameters: np.ndarray) -> np.ndarray:
    """(..., 8) -> (..., 3, 3) with h33 = 1."""
    one = np.ones((*parameters.shape[:-1], 1))
    return np.concatenate([parameters, one], axis=-1).reshape(*parameters.shape[:-1], 3, 3)


def _regulariser(width: int, height: int) -> np.ndarray:
    """Squared weights of the eight parameters: only shear (h12, h21) and perspective are pulled."""
    half = np.array([0, height, 0, width, 0, 0, width * width, height * height], np.float64) / 2
    return half**2


def _system(
    parameters: np.ndarray, p: np.ndarray, q: np.ndarray, weight: np.ndarray, scale: float,
    pull: np.ndarray, target: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Costs, normal matrices and right sides of all pairs; an infinite cost where the matrix is singular."""
    singular: Bool[np.ndarray, pairs] = ~(np.abs(np.linalg.det(_matrix(parameters))) > 1e-6)
    sound = np.where(singular[:, None], target, parameters)
    there, back, slope, slope_back = _residuals(sound, p, q)
    off = parameters - target
    cost, right = (pull * off**2).sum(axis=1), -pull * off
    normal = np.zeros((len(p), 8, 8))
    normal[:, np.arange(8), np.arange(8)] = pull
    for residual, jacobian in ((there, slope), (back, slope_back)):
        square = (residual**2).sum(axis=-1)
        shrink = 1 / (1 + square / scale**2)
        cost = cost + (weight * square * shrink).sum(axis=1)
        robust = (weight * shrink**2)[:, :, None]
        for axis in (0, 1):
            weighted = np.swapaxes(jacobian[:, :, axis] * robust, 1, 2)
            normal += weighted @ jacobian[:, :, axis]
            right = right - (weighted @ residual[:, :, axis, None])[..., 0]
    return np.where(singular, np.inf, cost), normal, right


def _residuals(
    parameters: Float[np.ndarray, "pairs 8"], p: np.ndarray, q: np.ndarray, slopes: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """pi(H p) - q, pi(H^-1 q) - p, and their derivatives by the eight parameters (pairs, matches, 2, 8)."""
    matrix = _matrix(parameters)
    inverse = np.linalg.inv(matrix)
    if not slopes:
        empty = np.zeros(0)
        return apply(matrix, p) - q, apply(inverse, q) - p, empty, empty
    there, slope = _forward(matrix, p)
    # y = H^-1 q: dy = -H^-1 dH y, seen through the projection
    lifted = q @ np.swapaxes(inverse[:, :, :2], 1, 2) + inverse[:, None, :, 2]
    bottom = lifted[..., 2:]
    bottom = np.where(np.abs(bottom) < 1e-9, 1e-9, bottom)
    back = lifted[..., :2] / bottom
    # rows of d pi / d y times H^-1
    through = (inverse[:, None, :2] - back[..., None] * inverse[:, None, 2:]) / bottom[..., None]
    slope_back = np.empty((*q.shape[:2], 2, 8))
    for row in range(3):
        for column in range(3 if row < 2 else 2):
            np.multiply(through[..., row], -lifted[..., column, None], out=slope_back[..., 3 * row + column])
    return there - q, back - p, slope, slope_back


def _forward(matrix: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pi(H p) and its derivative by h11..h32; `matrix` and `p` may have a leading axis of pairs."""
    moved = apply(matrix, p)
    bottom = p @ matrix[..., 2, :2, None] + matrix[..., 2:, 2:]
    bottom = np.where(np.abs(bottom) < 1e-9, 1e-9, bottom)
    scaled = p / bottom
    slope = np.zeros((*p.shape[:-1], 2, 8))
    for row in (0, 1):
        slope[..., row, 3 * row : 3 * row + 2] = scaled
        slope[..., row, 3 * row + 2] = 1 / bottom[..., 0]
        slope[..., row, 6:] = -moved[..., row, None] * scaled
    return moved, slope
