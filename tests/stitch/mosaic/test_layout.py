import numpy as np
import pytest

from fewer.stitch.mosaic.layout import Layout
from fewer.stitch.options import BlendOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens

FORM = Geometry("cylinder", Lens("equidistant", 95.0), (119.5, 119.5), 116.0, 2.2)


@pytest.mark.parametrize("width", [123, 400])
def test_every_frame_lies_on_the_map_at_its_depth(width: int) -> None:
    poses = np.zeros((7, 6))
    poses[:, 5] = np.random.default_rng(0).uniform(-2, 1, 7)
    layout = Layout(FORM, poses, width, BlendOptions())
    for place in range(7):
        area, shape = layout.area(place), layout.shape(place)
        assert 0 <= area.start < area.stop <= layout.height
        assert shape.height == area.stop - area.start
        # row 0 of the strip, seen from the camera, lies where its row of the map does
        assert np.isclose(shape.first_depth + poses[place, 5], layout.top + area.start / layout.scale)
        assert layout.band[0] - 1 / layout.scale <= shape.first_depth <= layout.band[0] + 1e-9
    assert layout.bytes_laid < layout.bytes_held


@pytest.mark.parametrize(("blend", "bands", "powers"), [("multiband", 4, [6, 2, 2, 1]), ("last", 4, [1])])
def test_coarse_bands_average_and_fine_ones_choose(blend: str, bands: int, powers: list[int]) -> None:
    assert Layout(FORM, np.zeros((1, 6)), 100, BlendOptions(blend=blend, bands=bands)).powers == powers
