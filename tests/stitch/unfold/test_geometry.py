import math

import numpy as np
import pytest

from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens


def geometry(mode: str = "cylinder", lens: Lens | None = None) -> Geometry:
    return Geometry(mode, lens or Lens("equidistant", 190.0), (239.5, 239.5), 232.0, 2.2)


def pixels(count: int = 200) -> np.ndarray:
    random = np.random.default_rng(0)
    angle, radius = random.uniform(0, 2 * np.pi, count), random.uniform(60, 230, count)
    return 239.5 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.mark.parametrize("mode", ["cylinder", "linear", "log"])
@pytest.mark.parametrize(
    "lens", [Lens("equidistant", 190.0), Lens("pinhole", 84.0)], ids=lambda lens: lens.model
)
def test_unfolding_and_folding_are_inverse(mode: str, lens: Lens) -> None:
    form = geometry(mode, lens)
    pose = np.array([0.12, -0.08, 0.07, -0.05])
    xy = pixels()
    assert np.allclose(form.to_picture(form.to_wall(xy, pose), pose), xy, atol=1e-6)


def test_an_axial_step_and_a_roll_are_translations() -> None:
    """What makes the cylinder's chain rigid: both are exact shifts of the sheet."""
    form, centred = geometry(), np.zeros(4)
    xy = pixels()
    wall = form.to_wall(xy, centred)
    turned = form.to_wall(239.5 + (xy - 239.5) @ np.array([[0, 1], [-1, 0]]), centred)
    assert np.allclose(np.mod(turned[:, 0] - wall[:, 0], 2 * np.pi), np.pi / 2)
    assert np.allclose(turned[:, 1], wall[:, 1])
    # a camera 0.3 radii further sees the same wall point at depth - 0.3
    ahead = form.to_picture(wall - np.array([0.0, 0.3]), centred)
    assert np.allclose(form.to_wall(ahead, centred), wall - np.array([0.0, 0.3]), atol=1e-9)


def test_a_row_of_poses_acts_point_by_point() -> None:
    form, xy = geometry(), pixels(5)
    poses = np.random.default_rng(1).normal(0, 0.05, (5, 4))
    together = form.to_wall(xy, poses)
    single = np.concatenate([form.to_wall(xy[i : i + 1], poses[i]) for i in range(5)])
    assert np.allclose(together, single)


def test_the_wall_lies_on_the_unit_cylinder() -> None:
    """Independent of the formula: go back along the ray with plain rotations."""
    form = geometry()
    a, b, pan, tilt = pose = np.array([0.1, 0.05, 0.1, -0.12])
    xy = pixels(40)
    wall = form.to_wall(xy, pose)
    point = np.stack([np.cos(wall[:, 0]) - a, np.sin(wall[:, 0]) - b, wall[:, 1]], axis=1)
    about_y = np.array([[math.cos(pan), 0, math.sin(pan)], [0, 1, 0], [-math.sin(pan), 0, math.cos(pan)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    ray = point @ (about_y @ about_x)
    radius = form.lens.radius(np.arctan2(np.hypot(ray[:, 0], ray[:, 1]), ray[:, 2]))
    direction = ray[:, :2] / np.hypot(ray[:, 0], ray[:, 1])[:, None]
    assert np.allclose(239.5 + radius[:, None] * direction, xy, atol=1e-6)


def test_pose_towards_turns_the_axis_to_where_the_lumen_appears() -> None:
    form = geometry()
    pose = form.pose_towards((260.0, 215.0))
    far = form.to_picture(np.array([[0.3, 1e6]]), pose)
    assert np.allclose(far, [[260.0, 215.0]], atol=1e-2)


@pytest.mark.parametrize("mode", ["cylinder", "linear", "log"])
def test_depth_grows_towards_the_lumen_and_starts_at_the_field_edge(mode: str) -> None:
    form = geometry(mode)
    edge = form.to_wall(np.array([[239.5 + 232.0, 239.5]]), np.zeros(4))
    inner = form.to_wall(np.array([[239.5 + 100.0, 239.5]]), np.zeros(4))
    assert edge[0, 1] == pytest.approx(form.near_depth(), abs=1e-9)
    assert form.near_depth() < inner[0, 1] < form.far_depth()


@pytest.mark.parametrize("mode", ["cylinder", "linear", "log"])
def test_resolution_is_the_derivative_of_the_projection(mode: str) -> None:
    form, step = geometry(mode), 1e-5
    depth = np.linspace(form.near_depth() + 0.05, form.far_depth() * 0.8, 7)
    wall = np.stack([np.full(7, 0.4), depth], axis=1)
    around, along = form.resolution(depth)
    for axis, expected in ((0, around), (1, along)):
        move = np.zeros(2)
        move[axis] = step
        slope = form.to_picture(wall + move, np.zeros(4)) - form.to_picture(wall - move, np.zeros(4))
        assert np.allclose(np.hypot(*slope.T) / (2 * step), expected, rtol=1e-4)


def test_the_axis_in_the_picture_is_the_far_middle_of_the_tube() -> None:
    form = geometry()
    assert np.allclose(form.axis_in_picture(np.zeros((1, 4))), [[239.5, 239.5]])
    pose = form.pose_towards((250.0, 225.0))
    assert np.allclose(form.axis_in_picture(pose[None]), [[250.0, 225.0]])
    poses = np.random.default_rng(0).normal(0, 0.05, (3, 4))
    # opposite wall points at the same depth lie on either side of it
    for row, middle in zip(poses, form.axis_in_picture(poses), strict=True):
        ring = form.to_picture(np.stack([np.linspace(0, 6.2, 50), np.full(50, 2.5)], axis=1), row)
        assert np.hypot(*(ring.mean(axis=0) - middle)) < 4
