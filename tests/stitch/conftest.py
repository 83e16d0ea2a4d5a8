import numpy as np
import pytest

from fewer.stitch.options import MatchOptions, StitchOptions, UnfoldOptions
from fewer.stitch.panorama import Panorama, stitch
from fewer.stitch.tube.render import Tube

SMALL = StitchOptions(
    unfold=UnfoldOptions(width=400, strip_width=400), match=MatchOptions(sift_features=500, orb_features=500)
)


@pytest.fixture(scope="session")
def small_options() -> StitchOptions:
    return SMALL


@pytest.fixture(scope="session")
def small_tube() -> Tube:
    """Folds, tilt, roll, noise and highlights, but only ten frames of 240 pixels."""
    return Tube("B", seed=1, frames=10, size=240)


@pytest.fixture(scope="session")
def small_frames(small_tube: Tube) -> list[np.ndarray]:
    return [small_tube.frame(index) for index in range(small_tube.frames)]


@pytest.fixture(scope="session")
def small_map(small_frames: list[np.ndarray]) -> Panorama:
    return stitch(small_frames, SMALL)
