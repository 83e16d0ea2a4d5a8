import numpy as np
import pytest

from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.slope import wall_and_slope

LENSES = [
    Lens("equidistant", 190.0),
    Lens("pinhole", 84.0),
    Lens("kannala-brandt", 180.0, (0.02, -0.01, 0.0, 0.0)),
]


@pytest.mark.parametrize("mode", ["cylinder", "linear", "log"])
@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: lens.model)
@pytest.mark.parametrize("count", [1, 123])
def test_derivatives_are_those_of_differences(mode: str, lens: Lens, count: int) -> None:
    form = Geometry(mode, lens, (239.5, 239.5), 232.0, 2.2)
    random = np.random.default_rng(count)
    angle, radius = random.uniform(0, 2 * np.pi, count), random.uniform(60, 230, count)
    xy = 239.5 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    pose = random.normal(0, 0.08, (count, 4))
    wall, slope = wall_and_slope(form, xy, pose)
    assert np.allclose(wall, form.to_wall(xy, pose))
    for axis in range(4):
        step = np.eye(4)[axis] * 1e-6
        change = form.to_wall(xy, pose + step) - form.to_wall(xy, pose - step)
        change[:, 0] = np.angle(np.exp(1j * change[:, 0]))
        assert np.allclose(slope[:, :, axis], change / 2e-6, rtol=1e-4, atol=1e-6)
