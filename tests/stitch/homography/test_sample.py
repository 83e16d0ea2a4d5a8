import numpy as np
import pytest

from fewer.stitch.homography.project import apply
from fewer.stitch.homography.sample import weighted_msac
from fewer.stitch.options import HomographyOptions

TRUE = np.array([[1.01, 0.02, 8.0], [-0.01, 0.98, -12.0], [1e-5, -2e-5, 1.0]])


def matches(good: int, bad: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    p = random.uniform([0, 0], [800, 250], (good + bad, 2))
    q = apply(TRUE, p) + random.normal(0, noise, (good + bad, 2))
    q[good:] = random.uniform([0, 0], [800, 250], (bad, 2))
    return p, q


@pytest.mark.parametrize(("good", "bad"), [(60, 0), (100, 100), (40, 90)])
def test_the_truth_is_found_among_outliers(good: int, bad: int) -> None:
    p, q = matches(good, bad)
    found = weighted_msac(p, q, np.ones(good + bad), HomographyOptions(), np.random.default_rng(0))
    assert found is not None
    corners = np.array([[0, 0], [800, 0], [0, 250], [800, 250]], float)
    assert np.hypot(*(apply(found, corners) - apply(TRUE, corners)).T).max() < 3


def test_one_seed_one_result() -> None:
    p, q = matches(50, 50)
    runs = [
        weighted_msac(p, q, np.ones(100), HomographyOptions(), np.random.default_rng(7)) for _ in range(2)
    ]
    assert (runs[0] == runs[1]).all()


def test_weights_steer_the_samples() -> None:
    """A second motion with more matches but hardly any weight loses."""
    p, q = matches(60, 100)
    q[60:] = p[60:] + np.array([40, 40])
    weight = np.where(np.arange(160) < 60, 1.0, 0.01)
    found = weighted_msac(p, q, weight, HomographyOptions(), np.random.default_rng(0))
    assert found is not None
    assert np.hypot(*(apply(found, p[:60]) - q[:60]).T).mean() < 2


@pytest.mark.parametrize("kind", ["line", "same"])
def test_degenerate_points_give_nothing_and_no_error(kind: str) -> None:
    p = (
        np.stack([np.arange(20.0) * 10, np.full(20, 5.0)], axis=1)
        if kind == "line"
        else np.full((20, 2), 3.0)
    )
    options = HomographyOptions(max_samples=200)
    assert weighted_msac(p, p + 1, np.ones(20), options, np.random.default_rng(0)) is None
