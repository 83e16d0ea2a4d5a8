"""Colour, number and place are measured right, also in noisy pictures."""

import numpy as np
import pytest
import torch

from fewer.generate.scenes.compose import Placed, Scene
from fewer.generate.scenes.measures import background_colours, count_objects, places_of
from fewer.generate.scenes.vocabulary import COLOURS


def batch(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture)[None]


@pytest.mark.parametrize("colour", COLOURS)
def test_backgrounds_are_named_despite_noise_and_an_object(renderer, colour: str) -> None:
    scene = Scene("flat", colour, "single", "center", "large", (Placed("bus", 0.5, 0.5, 0.6),))
    noise = np.random.default_rng(0).integers(-12, 13, (64, 64, 3))
    picture = (renderer(scene).astype(int) + noise).clip(0, 255).astype(np.uint8)
    assert background_colours(batch(picture)) == [colour]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_objects_are_counted(count: int) -> None:
    picture = np.full((64, 64, 3), 200, dtype=np.uint8)
    for index in range(count):
        picture[20:40, 4 + 20 * index : 18 + 20 * index] = (10, 90, 20)
    picture[60, 60] = 0  # a speck is no object
    assert count_objects(batch(picture)) == [count]


def test_an_object_in_parts_with_a_small_gap_is_one() -> None:
    picture = np.full((64, 64, 3), 200, dtype=np.uint8)
    picture[20:40, 10:20] = picture[20:40, 21:30] = 0
    assert count_objects(batch(picture)) == [1]


@pytest.mark.parametrize(
    "top,left,place",
    [(24, 2, "left"), (24, 24, "center"), (24, 45, "right"), (2, 24, "top"), (45, 26, "bottom")],
)
def test_places(top: int, left: int, place: str) -> None:
    picture = np.full((64, 64, 3), 200, dtype=np.uint8)
    picture[top : top + 16, left : left + 16] = 0
    empty = np.zeros((64, 64, 3), dtype=np.uint8)
    assert places_of(torch.from_numpy(np.stack([picture, empty]))) == [place, "center"]
