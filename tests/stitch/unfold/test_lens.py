import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fewer.core.errors import ConfigError
from fewer.stitch.options import UnfoldOptions
from fewer.stitch.unfold.lens import Lens, make_lens

MODELS = [
    Lens("equidistant", 190.0),
    Lens("pinhole", 84.0),
    Lens("kannala-brandt", 180.0, (0.05, -0.02, 0.004, -0.0003)),
]


@pytest.mark.parametrize("lens", MODELS, ids=lambda lens: lens.model)
def test_angle_and_radius_are_inverse_and_the_slope_is_the_derivative(lens: Lens) -> None:
    angle = np.linspace(0.0, math.radians(70), 123)
    assert np.allclose(lens.angle(lens.radius(angle)), angle, atol=1e-9)
    step = 1e-6
    numeric = (lens.radius(angle + step) - lens.radius(angle - step)) / (2 * step)
    assert np.allclose(lens.pixels_per_radian(angle), numeric, rtol=1e-6)


def test_kannala_brandt_agrees_with_opencv() -> None:
    lens = MODELS[2]
    rays = np.random.default_rng(0).uniform(-1, 1, (50, 1, 3)) * [1, 1, 0] + [0, 0, 1.0]
    camera = np.diag([lens.focal, lens.focal, 1.0])
    points, _ = cv2.fisheye.projectPoints(rays, np.zeros(3), np.zeros(3), camera, np.array(lens.coefficients))
    angle = np.arctan2(np.hypot(rays[:, 0, 0], rays[:, 0, 1]), rays[:, 0, 2])
    assert np.allclose(np.hypot(*points[:, 0].T), lens.radius(angle), atol=1e-6)


@pytest.mark.parametrize("model", ["equidistant", "pinhole", "kannala-brandt"])
def test_the_field_of_view_ends_at_the_field_radius(model: str) -> None:
    options = UnfoldOptions(lens=model, field_of_view=130.0, kannala_brandt=(0.02, 0.0, 0.0, 0.0))
    lens = make_lens(options, 200.0)
    assert lens.angle(np.array([200.0]))[0] == pytest.approx(math.radians(65), abs=1e-9)


def test_a_pinhole_cannot_see_half_the_sphere() -> None:
    with pytest.raises(ConfigError, match="175"):
        make_lens(UnfoldOptions(lens="pinhole", field_of_view=175.0), 200.0)


def test_a_lens_whose_radius_falls_is_refused_and_one_that_falls_beyond_the_field_is_not() -> None:
    """r = a - 0.3 a^3 rises up to a = 1.054, which is 60.4 degrees."""
    falling = UnfoldOptions(lens="kannala-brandt", kannala_brandt=(-0.3, 0.0, 0.0, 0.0), field_of_view=122.0)
    with pytest.raises(ConfigError, match=r"falls from 6[01] degrees"):
        make_lens(falling, 200.0)
    assert make_lens(replace(falling, field_of_view=120.0), 200.0).focal > 0
