import numpy as np
import pytest
import torch

from fewer.stitch.device.adjust import camera, parts_on, wall_and_slope
from fewer.stitch.unfold import slope
from fewer.stitch.unfold.adjust import Matched, adjust
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens

CPU = torch.device("cpu")
LENSES = [
    Lens("equidistant", 190.0),
    Lens("pinhole", 120.0),
    Lens("kannala-brandt", 190.0, (0.02, -0.01, 0.003, 0.0)),
]


def form(lens: Lens) -> Geometry:
    return Geometry("cylinder", lens, (239.5, 239.5), 232.0, 2.2)


def scene(geometry: Geometry, frames: int = 5) -> tuple[np.ndarray, list[Matched]]:
    """True poses, and pairs whose matches are a little off, a few of them far."""
    random = np.random.default_rng(0)
    truth = random.normal(0, 0.05, (frames, 6))
    truth[:, 5] = -0.1 * np.arange(frames)
    edges = []
    for first in range(1, frames):
        for second in {first - 1, max(first - 3, 0)}:
            count = 40 + 7 * first
            wall = random.uniform([0, 0.5], [6.28, 1.5], (count, 2))
            sides = [geometry.to_picture(wall - pose[4:], pose[:4]) for pose in truth[[first, second]]]
            sides[0] += random.normal(0, 0.5, (count, 2))
            sides[0][:3] += 40
            edges.append(Matched(first, second, *sides, random.uniform(0.1, 1, count)))
    return truth, edges


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: lens.model)
def test_the_poses_are_those_of_numpy(lens: Lens) -> None:
    geometry = form(lens)
    truth, edges = scene(geometry)
    start = truth + np.random.default_rng(1).normal(0, 0.02, truth.shape)
    lumen = geometry.axis_in_picture(truth[:, :4])
    plain = adjust(geometry, start, edges, lumen=lumen)
    mine = adjust(geometry, start, edges, lumen=lumen, parts=parts_on(CPU, geometry, edges))
    assert np.abs(mine.poses - plain.poses).max() < 1e-8
    assert abs(mine.rms - plain.rms) < 1e-8
    assert mine.iterations == plain.iterations


def test_slopes_are_those_of_numpy() -> None:
    geometry = form(LENSES[0])
    random = np.random.default_rng(2)
    xy, pose = random.uniform(60, 420, (30, 2)), random.normal(0, 0.1, (1, 6))
    wall, expected = slope.wall_and_slope(geometry, xy, np.repeat(pose[:, :4], 30, axis=0))
    rays = torch.from_numpy(np.stack(geometry.rays(xy), axis=1))[None, None]
    found, derivative = wall_and_slope(rays, torch.from_numpy(camera(pose))[None], True)
    assert np.allclose(found[0, 0].numpy(), wall)
    assert np.allclose(derivative[0, 0].numpy(), expected)


def test_what_it_cannot_do_is_left_to_numpy() -> None:
    geometry = form(LENSES[0])
    assert parts_on(CPU, geometry, []) is None
    linear = Geometry("linear", geometry.lens, geometry.centre, geometry.field_radius, geometry.depth)
    assert parts_on(CPU, linear, scene(geometry)[1]) is None
