import cv2
import numpy as np
import pytest

from fewer.stitch.homography.dwho import fit_pair, is_sound
from fewer.stitch.homography.project import apply
from fewer.stitch.options import HomographyOptions

TRUE = np.array([[1.01, 0.02, 8.0], [-0.01, 0.98, -12.0], [1e-5, -2e-5, 1.0]])
SIZE = (800, 250)
CORNERS = np.array([[0, 0], [800, 0], [0, 250], [800, 250]], float)


def matches(
    good: int, bad: int, seed: int = 0, noise: float = 0.6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    p = random.uniform([0, 20], [800, 230], (good + bad, 2))
    q = apply(TRUE, p) + random.normal(0, noise, (good + bad, 2))
    q[good:] += random.uniform(-30, 30, (bad, 2))
    return p, np.mod(q, [800, 1e9]), random.uniform(0.3, 1, good + bad)


def test_it_beats_ransac_on_the_same_matches() -> None:
    ours, theirs = [], []
    for seed in range(8):
        p, q, trust = matches(150, 60, seed)
        fit = fit_pair(p, q, trust, np.array([8.0, -12.0]), SIZE, HomographyOptions(), (seed,))
        near = (
            p
            + np.array([8, -12])
            + np.mod(q - p - np.array([8, -12]) + np.array([400, 0]), [800, 1e9])
            - np.array([400, 0])
        )
        ransac, _ = cv2.findHomography(p, near, cv2.RANSAC, 4.0)
        ours.append(np.hypot(*(apply(fit.homography, CORNERS) - apply(TRUE, CORNERS)).T).mean())
        theirs.append(np.hypot(*(apply(ransac, CORNERS) - apply(TRUE, CORNERS)).T).mean())
    assert np.mean(ours) < 0.8 * np.mean(theirs)


def test_the_report_of_a_fit_is_true() -> None:
    p, q, trust = matches(150, 40)
    fit = fit_pair(p, q, trust, np.array([8.0, -12.0]), SIZE, HomographyOptions(), held_out=True)
    assert fit.ok
    assert fit.model == "homography"
    assert (fit.weight[~fit.inlier] == 0).all()
    assert fit.inlier[:150].mean() > 0.95
    assert 0.5 < fit.rmse < 1.5
    assert 0.5 < fit.held_out_rmse < 1.8
    assert fit.sigma > 0


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_fewer_than_eight_matches_fail_without_an_error(count: int) -> None:
    p = np.random.default_rng(0).uniform(0, 200, (count, 2))
    fit = fit_pair(p, p, np.ones(count), np.zeros(2), SIZE, HomographyOptions())
    assert not fit.ok
    assert np.isfinite(fit.homography).all()


def test_random_matches_never_give_nan() -> None:
    for seed in range(6):
        random = np.random.default_rng(seed)
        p, q = random.uniform([0, 0], [800, 250], (2, 40, 2))
        fit = fit_pair(p, q, np.ones(40), np.zeros(2), SIZE, HomographyOptions(max_samples=200), (seed,))
        assert np.isfinite(fit.homography).all()


def test_matches_on_one_side_fall_back_to_a_simpler_model() -> None:
    random = np.random.default_rng(0)
    p = random.uniform([10, 20], [90, 230], (60, 2))
    fit = fit_pair(p, p + np.array([5.0, 9.0]), np.ones(60), np.array([5.0, 9.0]), SIZE, HomographyOptions())
    assert fit.ok
    assert fit.model != "homography"
    assert np.allclose(apply(fit.homography, p), p + np.array([5, 9]), atol=0.1)


def test_rolling_both_strips_rolls_nothing_else() -> None:
    p, q, trust = matches(120, 0)
    plain = fit_pair(p, q, trust, np.array([8.0, -12.0]), SIZE, HomographyOptions())
    rolled = fit_pair(
        p,
        np.mod(q + np.array([800, 0]), [800, 1e9]),
        trust,
        np.array([8.0, -12.0]),
        SIZE,
        HomographyOptions(),
    )
    assert np.allclose(plain.homography, rolled.homography)


@pytest.mark.parametrize(
    "bad",
    [
        np.diag([1.6, 1.6, 1.0]),
        np.diag([-1.0, -1.0, 1.0]),
        np.array([[1, 0, 0], [0, 1, 0], [5e-4, 0, 1.0]]),
        np.full((3, 3), np.nan),
    ],
)
def test_unsound_homographies_are_refused(bad: np.ndarray) -> None:
    assert not is_sound(bad, 800, 250)
    assert is_sound(TRUE, 800, 250)
