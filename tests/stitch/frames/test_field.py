from pathlib import Path

import cv2
import numpy as np
import pytest

from fewer.core.errors import DataError
from fewer.stitch.frames.field import field_from_mask, find_field


def disc(height: int, width: int, x: float, y: float, radius: float, seed: int) -> np.ndarray:
    rows, columns = np.indices((height, width))
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.uint8)
    inside = np.hypot(columns - x, rows - y) <= radius
    picture[inside] = random.integers(60, 200, (int(inside.sum()), 3))
    return picture


@pytest.mark.parametrize(
    ("x", "y", "radius"),
    [(160.0, 120.0, 100.0), (150.3, 118.7, 90.4), (160.0, 120.0, 140.0), (120.0, 100.0, 125.0)],
)
def test_the_circle_is_found_also_when_the_frame_cuts_it(x: float, y: float, radius: float) -> None:
    field = find_field([disc(240, 320, x, y, radius, seed) for seed in range(6)])
    assert field.is_circle
    assert np.hypot(field.centre[0] - x, field.centre[1] - y) <= 1
    assert abs(field.radius - radius) <= 1.5
    rows, columns = np.nonzero(field.mask)
    assert np.hypot(columns - x, rows - y).max() < radius - 0.5


def test_burned_in_text_beside_the_field_never_gets_in() -> None:
    pictures = [disc(240, 320, 180, 120, 90, seed) for seed in range(8)]
    for picture in pictures:
        cv2.putText(picture, "NAME", (5, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
    field = find_field(pictures)
    assert not field.mask[10:32, 3:80].any()


def test_text_inside_the_field_is_an_overlay() -> None:
    pictures = [disc(240, 320, 160, 120, 100, seed) for seed in range(8)]
    for picture in pictures:
        picture[100:110, 150:190] = 255
    field = find_field(pictures)
    assert field.overlay[105, 170]
    assert not field.usable[105, 170]
    assert field.usable[160, 160]


def test_an_eight_sided_field_stays_a_polygon() -> None:
    points = np.array(
        [[60, 20], [260, 20], [300, 60], [300, 180], [260, 220], [60, 220], [20, 180], [20, 60]]
    )
    pictures = []
    for seed in range(4):
        shape = np.zeros((240, 320), np.uint8)
        cv2.fillConvexPoly(shape, points, 1)
        pictures.append(
            np.random.default_rng(seed).integers(60, 200, (240, 320, 3), np.uint8) * shape[..., None]
        )
    field = find_field(pictures)
    assert not field.is_circle
    assert abs(field.mask.sum() / cv2.contourArea(points.astype(np.int32)) - 1) < 0.12


@pytest.mark.parametrize("value", [0, 5])
def test_black_frames_are_refused(value: int) -> None:
    with pytest.raises(DataError, match="black"):
        find_field([np.full((60, 60, 3), value, np.uint8)])


def test_no_frames_and_an_empty_mask_are_refused() -> None:
    with pytest.raises(DataError, match="no frames"):
        find_field([])
    with pytest.raises(DataError, match="black everywhere"):
        field_from_mask(np.zeros((5, 5), bool))


def test_a_given_round_mask_is_a_circle() -> None:
    rows, columns = np.indices((100, 120))
    field = field_from_mask(np.hypot(columns - 60, rows - 50) <= 40)
    assert field.is_circle
    assert abs(field.radius - 40) < 1


def test_the_real_clip_has_a_round_field() -> None:
    from fewer.stitch.frames.source import open_frames

    clip = open_frames(Path("data/endoscopy/laparoscopy_circle_640x360_25fps.mp4"))
    pictures = [frame.picture for frame, _ in zip(clip, range(10), strict=False)]
    field = find_field(pictures)
    assert 0.2 < field.mask.mean() < 0.95
