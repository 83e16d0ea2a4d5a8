import numpy as np
import pytest

from fewer.stitch.homography.density import density_weights, match_density
from fewer.stitch.options import HomographyOptions


@pytest.mark.parametrize("count", [2, 5, 123])
def test_density_is_the_formula(count: int) -> None:
    random = np.random.default_rng(0)
    points, trust = random.uniform([0, 0], [300, 100], (count, 2)), random.uniform(0.1, 1, count)
    h = 0.04 * 300
    wanted = np.zeros(count)
    for k in range(count):
        for j in range(count):
            dx = (points[k, 0] - points[j, 0] + 150) % 300 - 150
            dy = points[k, 1] - points[j, 1]
            wanted[k] += (j != k) * trust[j] * np.exp(-(dx**2 + dy**2) / (2 * h * h))
    middle = np.median(wanted)
    if middle > 1e-9:
        assert np.allclose(match_density(points, trust, 300, 0.04), wanted / middle, rtol=2e-3, atol=1e-4)


def test_rolling_all_points_round_the_tube_changes_nothing() -> None:
    random = np.random.default_rng(1)
    points = random.uniform([0, 0], [300, 100], (60, 2))
    rolled = (points + np.array([123.4, 0])) % [300, 1000]
    trust = np.ones(60)
    assert np.allclose(
        match_density(points, trust, 300, 0.04), match_density(rolled, trust, 300, 0.04), rtol=1e-3
    )


def test_gamma_decides_who_has_more_say() -> None:
    random = np.random.default_rng(2)
    cluster, spread = random.normal(100, 4, (40, 2)), random.uniform([0, 0], [800, 200], (40, 2))
    points, trust = np.concatenate([cluster, spread]), np.ones(80)
    options = HomographyOptions()
    dense = density_weights(points, points, trust, 800, 0.5, options)
    even = density_weights(points, points, trust, 800, -0.5, options)
    plain = density_weights(points, points, trust, 800, 0.0, options)
    assert dense[:40].mean() > dense[40:].mean()
    assert even[:40].mean() < even[40:].mean()
    assert (plain == trust).all()
    assert even.max() <= 0.1**-0.5 + 1e-9


def test_symmetric_density_does_not_care_which_picture_is_first() -> None:
    random = np.random.default_rng(3)
    p, q = random.uniform([0, 0], [400, 100], (2, 50, 2))
    options = HomographyOptions(symmetric=True)
    one = density_weights(p, q, np.ones(50), 400, -0.5, options)
    two = density_weights(q, p, np.ones(50), 400, -0.5, options)
    assert np.allclose(one, two)
    single = HomographyOptions(symmetric=False)
    assert not np.allclose(density_weights(p, q, np.ones(50), 400, -0.5, single), one)
