import cv2
import numpy as np
import pytest

from fewer.stitch.homography.project import (
    apply,
    fit_affine,
    fit_linear,
    fit_shift,
    fit_stretch,
    normaliser,
    symmetric_error,
)

TRUE = np.array([[1.02, 0.03, 12.0], [-0.02, 0.97, -5.0], [2e-5, -3e-5, 1.0]])


def points(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).uniform([0, 0], [800, 250], (count, 2))


def test_apply_agrees_with_opencv() -> None:
    p = points()
    wanted = cv2.perspectiveTransform(p[None], TRUE)[0]
    assert np.allclose(apply(TRUE, p), wanted)
    stacked = apply(np.stack([TRUE, np.eye(3)]), p)
    assert np.allclose(stacked[0], wanted)
    assert np.allclose(stacked[1], p)


def test_the_horizon_gives_no_nan() -> None:
    horizon = np.array([[1.0, 0, 0], [0, 1, 0], [0.01, 0, -1]])
    assert np.isfinite(apply(horizon, np.array([[100.0, 3.0]]))).all()


@pytest.mark.parametrize("count", [4, 5, 123])
def test_linear_fit_is_exact_on_exact_points(count: int) -> None:
    p = points(count)
    fit = fit_linear(p, apply(TRUE, p), np.linspace(0.2, 1, count))
    assert fit is not None
    assert np.allclose(apply(fit, p), apply(TRUE, p), atol=1e-6)


def test_weights_decide_whom_a_fit_follows() -> None:
    p = points(60)
    q = apply(TRUE, p)
    q[30:] += 20
    weight = np.where(np.arange(60) < 30, 1.0, 1e-9)
    fit = fit_linear(p, q, weight)
    assert fit is not None
    assert np.abs(apply(fit, p)[:30] - q[:30]).max() < 0.01


def test_simpler_models_are_exact_on_their_own_motion() -> None:
    p, weight = points(), np.ones(40)
    affine = np.array([[1.1, 0.05, 3.0], [-0.04, 0.9, 7.0], [0, 0, 1.0]])
    stretch = np.array([[1.0, 0, 3.0], [0, 0.93, 7.0], [0, 0, 1.0]])
    shift = np.array([[1.0, 0, 3.0], [0, 1, 7.0], [0, 0, 1.0]])
    assert np.allclose(fit_affine(p, apply(affine, p), weight), affine)
    assert np.allclose(fit_stretch(p, apply(stretch, p), weight), stretch)
    assert np.allclose(fit_shift(p, apply(shift, p), weight), shift)


def test_symmetric_error_is_zero_for_the_truth_and_the_same_both_ways() -> None:
    p = points()
    q = apply(TRUE, p) + np.random.default_rng(1).normal(0, 1, (40, 2))
    assert np.allclose(symmetric_error(TRUE, p, apply(TRUE, p)), 0, atol=1e-9)
    assert np.allclose(symmetric_error(TRUE, p, q), symmetric_error(np.linalg.inv(TRUE), q, p))


def test_normalised_points_have_mean_zero_and_distance_root_two() -> None:
    p = points()
    out = apply(normaliser(p), p)
    assert np.allclose(out.mean(axis=0), 0, atol=1e-12)
    assert np.hypot(*out.T).mean() == pytest.approx(np.sqrt(2))
