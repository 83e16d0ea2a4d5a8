"""Levenberg-Marquardt on the eight parameters of a homography, robust, weighted, both transfer directions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fewer.stitch.homography.project import apply
from fewer.stitch.options import HomographyOptions


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
    parameters = (start / start[2, 2]).reshape(-1)[:8].copy()
    pull = _regulariser(width, height) * (options.regularisation * weight.sum())
    target = np.array([1, 0, shift[0], 0, 1, shift[1], 0, 0], np.float64)
    steps, damping = 0, 1e-3
    for stage in (4.0, 2.0, 1.0):
        scale = stage * options.robust_scale
        cost, normal, right = _system(parameters, p, q, weight, scale, pull, target)
        for _ in range(10):
            steps += 1
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)) + 1e-12 * np.eye(8), right)
            trial = parameters + move
            if abs(np.linalg.det(_matrix(trial))) < 1e-6:
                damping *= 10
                continue
            new_cost, new_normal, new_right = _system(trial, p, q, weight, scale, pull, target)
            if new_cost > cost:
                damping = min(damping * 10, 1e6)
                continue
            settled = cost - new_cost < 1e-6 * cost
            parameters, cost, normal, right = trial, new_cost, new_normal, new_right
            damping = max(damping / 10, 1e-9)
            if settled:
                break
    residual, _ = _residuals(parameters, p, q)
    square = (residual**2).sum(axis=1)
    robust = np.tile(weight, 2) / (1 + square / options.robust_scale**2) ** 2
    variance = (robust * square).sum() / max(robust.sum(), 1e-9) / 2
    covariance = variance * np.linalg.pinv(normal / max(weight.mean(), 1e-9))
    return Refined(_matrix(parameters), (covariance + covariance.T) / 2, steps)


def corner_sigma(refined: Refined, width: int, height: int) -> float:
    """Predicted standard deviation (pixels) of where the strip's corners land: the worst of the four."""
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    _, slope = _forward(refined.homography, corners)
    spread = np.einsum("nab,bc,ndc->nad", slope, refined.covariance, slope)
    return float(np.sqrt(np.max(np.trace(spread, axis1=1, axis2=2))))


def _matrix(parameters: np.ndarray) -> np.ndarray:
    return np.append(parameters, 1.0).reshape(3, 3)


def _regulariser(width: int, height: int) -> np.ndarray:
    """Squared weights of the eight parameters: only shear (h12, h21) and perspective are pulled."""
    half = np.array([0, height, 0, width, 0, 0, width * width, height * height], np.float64) / 2
    return half**2


def _system(
    parameters: np.ndarray, p: np.ndarray, q: np.ndarray, weight: np.ndarray, scale: float,
    pull: np.ndarray, target: np.ndarray,
) -> tuple[float, np.ndarray, np.ndarray]:  # fmt: skip
    residual, slope = _residuals(parameters, p, q)
    square = (residual**2).sum(axis=1)
    both = np.tile(weight, 2)
    robust = both / (1 + square / scale**2) ** 2
    off = parameters - target
    cost = float((both * square / (1 + square / scale**2)).sum() + (pull * off**2).sum())
    flat = slope.reshape(-1, 8)
    weighted = flat * np.repeat(robust, 2)[:, None]
    return cost, weighted.T @ flat + np.diag(pull), -(weighted.T @ residual.reshape(-1)) - pull * off


def _residuals(parameters: np.ndarray, p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2 matches, 2) residuals, forward then backward, and their derivatives by the eight parameters."""
    matrix = _matrix(parameters)
    inverse = np.linalg.inv(matrix)
    there, slope = _forward(matrix, p)
    # y = H^-1 q: dy = -H^-1 dH y, seen through the projection
    lifted = np.concatenate([q, np.ones((len(q), 1))], axis=1) @ inverse.T
    bottom = lifted[:, 2:]
    back = lifted[:, :2] / bottom
    project = np.zeros((len(q), 2, 3))
    project[:, 0, 0] = project[:, 1, 1] = 1 / bottom[:, 0]
    project[:, :, 2] = -back / bottom
    through = project @ inverse
    slope_back = -(through[..., :, None] * lifted[:, None, None, :]).reshape(len(q), 2, 9)[..., :8]
    return np.concatenate([there - q, back - p]), np.concatenate([slope, slope_back])


def _forward(matrix: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pi(H p) and its derivative by h11..h32."""
    moved = apply(matrix, p)
    bottom = p @ matrix[2, :2] + matrix[2, 2]
    x, y = p.T
    slope = np.zeros((len(p), 2, 8))
    for row in (0, 1):
        slope[:, row, 3 * row : 3 * row + 3] = np.stack([x, y, np.ones_like(x)], axis=1) / bottom[:, None]
        slope[:, row, 6] = -moved[:, row] * x / bottom
        slope[:, row, 7] = -moved[:, row] * y / bottom
    return moved, slope
