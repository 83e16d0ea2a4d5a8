"""A sheet of made-up sprites: coloured disks and squares, so that no test needs the emoji packages."""

import numpy as np
import pytest

from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.pool import Vocabulary
from fewer.generate.scenes.sprites import SpriteSheet
from tests.generate.training.conftest import letters, small_autoencoder  # noqa: F401

_WORDS = ("apple", "cat", "star", "bus")


def made_up_sheet() -> SpriteSheet:
    """Four concepts in two styles, 24 pixels a side; style changes the shape, concept the colour."""
    side = 24
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    disk, square = np.hypot(rows, columns) < 11, np.maximum(abs(rows), abs(columns)) < 11
    pixels = np.zeros((2, len(_WORDS), side, side, 4), dtype=np.uint8)
    for row, shape in enumerate((disk, square)):
        for column in range(len(_WORDS)):
            colour = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)][column])
            pixels[row, column, shape, :3] = colour
            pixels[row, column, shape, 3] = 255
    return SpriteSheet(tuple((word, word) for word in _WORDS), ("glossy", "flat"), pixels)


@pytest.fixture
def sheet() -> SpriteSheet:
    return made_up_sheet()


@pytest.fixture
def vocabulary(sheet: SpriteSheet) -> Vocabulary:
    return Vocabulary(sheet.words(), sheet.styles)


@pytest.fixture
def renderer(sheet: SpriteSheet) -> SceneRenderer:
    return SceneRenderer(sheet, 64)
