"""Scenes are drawn as announced and rendered where they say."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from fewer.core.errors import ConfigError
from fewer.generate.scenes.compose import Placed, Scene, SceneRenderer
from fewer.generate.scenes.table import draw_scene
from fewer.generate.scenes.vocabulary import COLOURS


def test_arrangements_have_their_shares(vocabulary) -> None:
    random = np.random.default_rng(0)
    drawn = [draw_scene(vocabulary.words, vocabulary.styles, random) for _ in range(3000)]
    shares = Counter(scene.arrangement for scene in drawn)
    assert [shares[kind] / 3000 for kind in ("single", "pair", "stack", "row")] == pytest.approx(
        [0.55, 0.18, 0.07, 0.20], abs=0.03
    )
    assert {len(scene.objects) for scene in drawn} == {1, 2, 3}
    for scene in drawn:
        assert (len(set(scene.concepts)) == 2) == (scene.arrangement in ("pair", "stack"))
        downwards = scene.arrangement == "stack"
        centres = [thing.down if downwards else thing.across for thing in scene.objects]
        assert centres == sorted(centres)


def test_objects_neither_overlap_nor_leave_the_picture(vocabulary) -> None:
    random = np.random.default_rng(1)
    for _ in range(500):
        scene = draw_scene(vocabulary.words, vocabulary.styles, random)
        things, downwards = scene.objects, scene.arrangement == "stack"
        for thing in things:
            for middle in (thing.across, thing.down):
                assert thing.side / 2 <= middle <= 1 - thing.side / 2 + 1e-9
        centres = [thing.down if downwards else thing.across for thing in things]
        gaps = [b - a - things[0].side for a, b in pairwise(centres)]
        assert all(gap > 0 for gap in gaps)


def test_one_concept_is_enough_to_draw_from() -> None:
    random = np.random.default_rng(2)
    assert {draw_scene(("cat",), ("flat",), random).arrangement for _ in range(50)} == {"single", "row"}


@pytest.mark.parametrize("side", [17, 64, 123])
def test_a_sprite_lies_where_the_scene_says(sheet, side: int) -> None:
    scene = Scene("flat", "white", "single", "left", "medium", (Placed("bus", 0.3, 0.6, 0.4),))
    picture = SceneRenderer(sheet, side)(scene)
    assert picture.shape == (side, side, 3)
    rows, columns = np.nonzero((picture == (255, 0, 255)).all(axis=2))
    assert (columns.mean() + 0.5) / side == pytest.approx(0.3, abs=1 / side)
    assert (rows.mean() + 0.5) / side == pytest.approx(0.6, abs=1 / side)
    assert tuple(picture[0, 0]) == COLOURS["white"]


def test_a_sprite_over_the_edge_is_cut(sheet) -> None:
    scene = Scene("flat", "black", "single", "left", "large", (Placed("cat", 0.0, 1.0, 0.5),))
    picture = SceneRenderer(sheet, 32)(scene)
    assert tuple(picture[31, 0]) == (0, 255, 0) and tuple(picture[0, 31]) == COLOURS["black"]


def test_half_transparent_pixels_mix(sheet) -> None:
    sheet.pixels[0, 0, ..., :3], sheet.pixels[0, 0, ..., 3] = 255, 128
    scene = Scene("glossy", "black", "single", "center", "large", (Placed("apple", 0.5, 0.5, 0.9),))
    middle = SceneRenderer(sheet, 32)(scene)[16, 16]
    expected = [round(255 * 128 / 255 + value * 127 / 255) for value in COLOURS["black"]]
    assert np.abs(middle.astype(int) - expected).max() <= 1


def test_unknown_words_and_tiny_sides_are_refused(sheet, renderer) -> None:
    with pytest.raises(ConfigError, match="unicorn"):
        renderer(Scene("flat", "red", "single", "center", "large", (Placed("unicorn", 0.5, 0.5, 0.5),)))
    with pytest.raises(ConfigError, match="16"):
        SceneRenderer(sheet, 8)
