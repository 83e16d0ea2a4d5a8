import numpy as np
import pytest

from fewer.stitch.frames.field import find_field
from fewer.stitch.frames.quality import highlight_mask
from fewer.stitch.tube.render import Tube
from fewer.stitch.unfold.lumen import Lumen, LumenTrack, find_lumen, focus_of_expansion


def true_centre(tube: Tube, index: int) -> np.ndarray:
    """The tube's axis 25 mm ahead, projected."""
    pose = tube.pose(index)
    z = pose.origin[2] + 25.0
    axis = tube.shape.axis(z)
    ray = (np.array([float(axis[0]), float(axis[1]), z]) - pose.origin) @ pose.rotation
    angle = np.arctan2(np.hypot(ray[0], ray[1]), ray[2])
    radius = tube.focal * (np.tan(angle) if tube.recipe.pinhole else angle)
    return tube.centre + radius * ray[:2] / max(np.hypot(ray[0], ray[1]), 1e-12)


@pytest.mark.parametrize("variant", ["A", "B", "C", "D"])
def test_median_error_is_below_three_percent_of_the_field(variant: str) -> None:
    tube = Tube(variant, seed=4, frames=8, size=240)
    frames = [tube.frame(index) for index in range(8)]
    field = find_field(frames)
    errors = []
    for index, picture in enumerate(frames):
        lumen = find_lumen(picture, field, highlight_mask(picture))
        assert lumen is not None
        errors.append(np.hypot(*(np.array([lumen.x, lumen.y]) - true_centre(tube, index))) / field.radius)
    assert np.median(errors) < 0.03


def test_a_wall_without_a_lumen_has_none(small_frames: list[np.ndarray]) -> None:
    field = find_field(small_frames)
    wall = np.random.default_rng(0).integers(120, 180, small_frames[0].shape, np.uint8)
    assert find_lumen(wall, field, np.zeros(wall.shape[:2], bool)) is None


def test_a_depth_of_your_own_is_used(small_frames: list[np.ndarray]) -> None:
    field = find_field(small_frames)
    rows, columns = np.indices(small_frames[0].shape[:2])

    def depth(picture: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.hypot(columns - 150, rows - 90))

    plain = find_lumen(small_frames[0], field, np.zeros((240, 240), bool))
    given = find_lumen(small_frames[0], field, np.zeros((240, 240), bool), depth)
    assert plain is not None
    assert given is not None
    assert np.hypot(given.x - 150, given.y - 90) < np.hypot(plain.x - 150, plain.y - 90)


def test_focus_of_expansion_is_where_all_motion_comes_from() -> None:
    random = np.random.default_rng(0)
    before = random.uniform(0, 400, (60, 2))
    after = before + 0.07 * (before - [210.0, 190.0]) + random.normal(0, 0.05, (60, 2))
    assert np.allclose(focus_of_expansion(before, after), [210, 190], atol=1)


def test_the_track_holds_ten_frames_and_ignores_a_jump() -> None:
    track = LumenTrack()
    for x in (100.0, 101.0, 102.0, 103.0):
        track.update(Lumen(x, 50.0, 3.0, 0.9))
    jumped = track.update(Lumen(300.0, 50.0, 3.0, 0.9))
    assert jumped is not None
    assert jumped.x < 110
    held = [track.update(None) for _ in range(11)]
    assert all(lumen is not None for lumen in held[:10])
    assert held[10] is None
    assert LumenTrack().update(None) is None
