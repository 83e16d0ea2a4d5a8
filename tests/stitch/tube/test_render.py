import numpy as np
import pytest

from fewer.core.errors import ConfigError
from fewer.stitch.tube.render import RECIPES, Tube


@pytest.mark.parametrize("variant", RECIPES)
def test_pixel_to_wall_and_back_is_exact(variant: str) -> None:
    tube = Tube(variant, seed=2, frames=12, size=240)
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 200)
    radius = np.random.default_rng(1).uniform(40, 110, 200)
    xy = tube.centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    theta, z = tube.locate(3, xy)
    off = np.hypot(*(tube.project(3, theta, z) - xy).T)
    assert np.nanmedian(off) <= 0.01


def test_frames_are_repeatable_alone_and_black_outside_the_field() -> None:
    tube = Tube("C", seed=2, frames=12, size=120)
    again = Tube("C", seed=2, frames=12, size=120)
    tube.frame(1)
    assert (tube.frame(5) == again.frame(5)).all()
    assert (tube.frame(5)[0, 0] == 0).all()
    assert (Tube("C", seed=3, frames=12, size=120).frame(5) != tube.frame(5)).any()


def test_the_burst_the_jump_the_blur_and_the_return_are_where_they_should_be() -> None:
    burst, steady = Tube("E", seed=1, frames=20, size=64), Tube("B", seed=1, frames=20, size=64)
    z = np.array([burst.pose(i).origin[2] for i in range(20)])
    assert np.argmin(np.diff(z)) == 10
    assert -33 < np.diff(z).min() < -29
    assert [i for i in range(20) if burst.is_burst(i)] == list(range(7, 13))
    assert not any(steady.is_burst(i) or steady.is_blurred(i) for i in range(20))
    back = Tube("F", seed=1, frames=20, size=64)
    depth = [back.pose(i).origin[2] for i in range(20)]
    assert np.argmin(depth) in range(8, 13)
    assert abs(depth[0] - depth[-1]) < 4
    assert [i for i in range(40) if Tube("C", frames=40, size=64).is_blurred(i)] == [10, 21, 32]


def test_highlights_stay_on_the_screen() -> None:
    tube = Tube("B", seed=3, frames=6, size=160)
    shining = [tube.frame(index).min(axis=2) > 235 for index in range(6)]
    assert (shining[0] & shining[5]).sum() > 0.3 * shining[0].sum() > 0


def test_the_middle_is_darker_than_the_edge() -> None:
    picture = Tube("A", frames=2, size=160).frame(0).astype(float)
    assert picture[75:85, 75:85].mean() < 0.2 * picture[75:85, 5:20].mean()


@pytest.mark.parametrize(
    "wrong", [{"variant": "Z"}, {"variant": "A", "frames": 1}, {"variant": "A", "size": 3}]
)
def test_wrong_values_are_named(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=str(next(reversed(wrong.values())))):
        Tube(**wrong)
