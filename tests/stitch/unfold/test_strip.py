import numpy as np
import pytest

from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.strip import (
    StripShape,
    pad_round,
    picture_coordinates,
    strip_shape,
    unwrap,
    unwrap_mask,
)

FORM = Geometry("cylinder", Lens("equidistant", 190.0), (239.5, 239.5), 232.0, 2.2)


def test_pixels_and_wall_are_inverse_and_columns_wrap() -> None:
    shape = StripShape(400, 100, 0.3)
    wall = np.random.default_rng(0).uniform([-3, 0.3], [9, 1.8], (50, 2))
    pixels = shape.to_pixels(wall)
    assert ((pixels[:, 0] >= 0) & (pixels[:, 0] < 400)).all()
    back = shape.to_wall(pixels)
    assert np.allclose(np.exp(1j * back[:, 0]), np.exp(1j * wall[:, 0]))
    assert np.allclose(back[:, 1], wall[:, 1])


@pytest.mark.parametrize("pose", [np.zeros(4), np.array([0.15, -0.1, 0.1, 0.12])], ids=["centred", "off"])
def test_interpolated_coordinates_are_exact_to_a_fiftieth_of_a_pixel(pose: np.ndarray) -> None:
    shape = strip_shape(FORM, 800)
    places = picture_coordinates(FORM, shape, pose, turn=0.3)
    rows, columns = np.indices((shape.height, shape.width))
    grid = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)
    exact = FORM.to_picture(shape.to_wall(grid) - np.array([0.3, 0.0]), pose).reshape(places.shape)
    assert np.abs(places - exact).max() < 0.02


def test_unwrapping_a_picture_of_its_own_angle_gives_straight_columns() -> None:
    rows, columns = np.indices((480, 480))
    angle = np.mod(np.arctan2(rows - 239.5, columns - 239.5), 2 * np.pi)
    picture = (angle * 255 / (2 * np.pi)).astype(np.float32)
    shape = strip_shape(FORM, 360)
    strip = unwrap(picture, picture_coordinates(FORM, shape, np.zeros(4)))
    inner = strip[60 : shape.height - 5, 20:-20]
    wanted = np.arange(360)[None, 20:-20] * 255 / 360
    assert np.abs(inner - wanted).max() < 1.5


def test_masks_keep_only_what_lies_wholly_inside() -> None:
    mask = np.zeros((480, 480), bool)
    mask[:, 240:] = True
    shape = strip_shape(FORM, 200)
    places = picture_coordinates(FORM, shape, np.zeros(4))
    strip = unwrap_mask(mask, places)
    assert strip.any()
    assert not strip.all()
    assert (places[strip][:, 0] >= 239.9).all()


@pytest.mark.parametrize("pad", [1, 5, 80])
def test_padding_repeats_the_other_end(pad: int) -> None:
    strip = np.arange(200)[None].repeat(3, 0)
    padded = pad_round(strip, pad)
    assert (padded[:, :pad] == strip[:, -pad:]).all()
    assert (padded[:, -pad:] == strip[:, :pad]).all()
