import numpy as np
import pytest

from fewer.stitch.mosaic.exposure import SAMPLES, brightness_profile, fit_exposure, wall_distance
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.strip import strip_shape

FORM = Geometry("cylinder", Lens("equidistant", 190.0), (239.5, 239.5), 232.0, 2.2)
SHAPE = strip_shape(FORM, 400)


def light(depth: np.ndarray) -> np.ndarray:
    return 180 / (1 + 1.2 * (1 + depth**2))


def strips(gains: list[float]) -> list[np.ndarray]:
    depth = SHAPE.first_depth + np.arange(SHAPE.height) / SHAPE.scale
    return [
        np.clip(np.repeat(light(depth)[:, None, None] * gain, 400, 1) * np.ones(3), 0, 255).astype(np.uint8)
        for gain in gains
    ]


def test_gain_and_fall_of_light_are_divided_out() -> None:
    pictures = strips([1.0, 1.3, 0.8, 1.1])
    mask = np.ones(pictures[0].shape[:2], bool)
    exposure = fit_exposure(np.stack([brightness_profile(p, mask) for p in pictures]), FORM, SHAPE)
    depth = SHAPE.first_depth + np.arange(SHAPE.height) / SHAPE.scale
    distance = wall_distance(FORM, depth, np.zeros(400), np.zeros(4))
    level = [(p * exposure.factor(i, distance))[5:-40].mean(axis=(1, 2)) for i, p in enumerate(pictures)]
    assert np.std(level) / np.mean(level) < 0.08
    assert np.std([row.mean() for row in level]) / np.mean(level) < 0.03


def test_bands_that_are_hardly_seen_are_nan_and_filled() -> None:
    picture = strips([1.0])[0]
    mask = np.ones(picture.shape[:2], bool)
    mask[: picture.shape[0] // 3] = False
    profile = brightness_profile(picture, mask)
    assert np.isnan(profile[0]).all()
    assert np.isfinite(profile[-1]).all()
    assert np.isfinite(fit_exposure(profile[None], FORM, SHAPE).profile).all()


@pytest.mark.parametrize("frames", [1, 5])
def test_nothing_seen_at_all_gives_no_nan(frames: int) -> None:
    exposure = fit_exposure(np.full((frames, SAMPLES, 3), np.nan), FORM, SHAPE)
    assert np.isfinite(exposure.gain).all()
    assert np.isfinite(exposure.profile).all()


def test_the_distance_is_from_the_lens_to_the_wall() -> None:
    pose = np.array([0.2, 0.0, 0.0, 0.0])
    near = wall_distance(FORM, np.array([0.5]), np.array([0.0, np.pi]), pose)
    assert near[0, 0] == pytest.approx(np.hypot(0.8, 0.5))
    assert near[0, 1] == pytest.approx(np.hypot(1.2, 0.5))
