import numpy as np
import pytest
from scipy.optimize import approx_fprime, least_squares

from fewer.stitch.homography.project import apply
from fewer.stitch.homography.refine import _residuals, corner_sigma, refine, refine_all
from fewer.stitch.options import HomographyOptions

TRUE = np.array([[1.01, 0.02, 8.0], [-0.01, 0.98, -12.0], [1e-5, -2e-5, 1.0]])
FREE = HomographyOptions(regularisation=0.0, robust_scale=50.0)


def matches(count: int = 150, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    p = random.uniform([0, 0], [800, 250], (count, 2))
    return p, apply(TRUE, p) + random.normal(0, noise, (count, 2))


def test_the_derivatives_are_right() -> None:
    p, q = matches(7)
    parameters = TRUE.reshape(-1)[:8].copy()
    _, _, *slopes = _residuals(parameters[None], p[None], q[None])
    for way in (0, 1):
        for row in range(7):
            for axis in (0, 1):

                def one(x: np.ndarray, way: int = way, row: int = row, axis: int = axis) -> float:
                    return _residuals(x[None], p[None], q[None])[way][0, row, axis]

                numeric = approx_fprime(parameters, one, 1e-8)
                exact = slopes[way][0, row, axis]
                assert np.allclose(exact, numeric, rtol=2e-3, atol=2e-3 * np.abs(numeric).max())


def test_without_robustness_it_is_scipys_minimum() -> None:
    p, q = matches(noise=0.3)
    ours = refine(TRUE, np.zeros(2), p, q, np.ones(150), 800, 250, FREE).homography
    start = TRUE.reshape(-1)[:8]

    def both_ways(x: np.ndarray) -> np.ndarray:
        return np.concatenate([part.ravel() for part in _residuals(x[None], p[None], q[None])[:2]])

    theirs = least_squares(both_ways, start, x_scale=np.abs(start) + 1e-5).x
    corners = np.array([[0, 0], [800, 0], [0, 250], [800, 250]], float)
    other = np.append(theirs, 1).reshape(3, 3)
    assert np.abs(apply(ours, corners) - apply(other, corners)).max() < 0.02


def test_outliers_have_no_say() -> None:
    p, q = matches()
    clean = refine(TRUE, np.zeros(2), p, q, np.ones(150), 800, 250, HomographyOptions())
    q = q.copy()
    q[:20] += 60
    spoiled = refine(TRUE, np.zeros(2), p, q, np.ones(150), 800, 250, HomographyOptions())
    assert np.abs(apply(clean.homography, p) - apply(spoiled.homography, p)).max() < 0.5


def test_regularisation_pulls_perspective_and_shear_towards_the_shift() -> None:
    p, q = matches(12)
    shift = np.array([8.0, -12.0])
    free = refine(TRUE, shift, p, q, np.ones(12), 800, 250, HomographyOptions(regularisation=0.0)).homography
    held = refine(TRUE, shift, p, q, np.ones(12), 800, 250, HomographyOptions(regularisation=1e3)).homography
    assert np.abs(held[2, :2]).sum() < np.abs(free[2, :2]).sum()
    assert abs(held[0, 1]) < abs(free[0, 1])


@pytest.mark.parametrize("noise", [0.2, 1.0])
def test_the_predicted_corner_sigma_is_the_scatter_of_repeated_fits(noise: float) -> None:
    corner, predicted = [], []
    for seed in range(30):
        p, q = matches(100, noise, seed)
        out = refine(TRUE, np.zeros(2), p, q, np.ones(100), 800, 250, FREE)
        corner.append(apply(out.homography, np.array([[0, 0], [800, 0], [0, 250], [800, 250]], float)))
        predicted.append(corner_sigma(out, 800, 250))
    scatter = np.sqrt((np.std(corner, axis=0) ** 2).sum(axis=1)).max()
    assert 0.5 < np.mean(predicted) / scatter < 2


def test_pairs_refined_side_by_side_are_those_refined_alone() -> None:
    sets = [matches(count, seed=count) for count in (40, 123, 90)]
    p, q, weight = np.zeros((3, 123, 2)), np.zeros((3, 123, 2)), np.zeros((3, 123))
    for row, (mine, theirs) in enumerate(sets):
        p[row, : len(mine)], q[row, : len(mine)], weight[row, : len(mine)] = mine, theirs, 1
    starts, shifts = np.stack([TRUE] * 3), np.zeros((3, 2))
    together = refine_all(starts, shifts, p, q, weight, 800, 250, HomographyOptions())
    for (mine, theirs), side in zip(sets, together, strict=True):
        alone = refine(TRUE, np.zeros(2), mine, theirs, np.ones(len(mine)), 800, 250, HomographyOptions())
        assert np.allclose(side.homography, alone.homography, atol=1e-6)
        assert np.allclose(side.covariance, alone.covariance, rtol=1e-3)
