"""The split is a fixed function of words and keeps every concept, style and colour in training."""

import numpy as np
import pytest

from fewer.generate.scenes.compose import Placed, Scene
from fewer.generate.scenes.split import _share, held_out_reasons, split_of
from fewer.generate.scenes.table import draw_scene
from fewer.generate.scenes.vocabulary import COLOURS, SMALL_VOCABULARY

WORDS = tuple(SMALL_VOCABULARY.values())
STYLES = ("glossy", "flat", "soft 3d")


def test_the_shares_are_as_announced() -> None:
    styles = [_share("style", word, style) < 0.15 for word in WORDS for style in STYLES]
    colours = [_share("colour", word, colour) < 0.10 for word in WORDS for colour in COLOURS]
    pairs = [_share("pair", one, other) < 0.15 for one in WORDS for other in WORDS if one != other]
    assert np.mean(styles) == pytest.approx(0.15, abs=0.07)
    assert np.mean(colours) == pytest.approx(0.10, abs=0.03)
    assert np.mean(pairs) == pytest.approx(0.15, abs=0.02)


def test_the_hash_never_changes() -> None:
    # Editions trained at different times must agree on what was held out.
    assert _share("style", "cat", "flat") == pytest.approx(0.3841796530284886)


def test_every_word_and_style_and_colour_is_trained_on() -> None:
    random = np.random.default_rng(0)
    drawn = [draw_scene(WORDS, STYLES, random) for _ in range(6000)]
    trained = [scene for scene in drawn if split_of(scene) == "train"]
    assert {word for scene in trained for word in scene.concepts} == set(WORDS)
    assert {scene.style for scene in trained} == set(STYLES)
    assert {scene.colour for scene in trained} == set(COLOURS)


def test_a_held_out_scene_has_a_reason_and_others_have_none() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        scene = draw_scene(WORDS, STYLES, random)
        assert (split_of(scene) == "held-out") == bool(held_out_reasons(scene))


def test_three_alike_are_no_pair() -> None:
    things = tuple(Placed("cat", 0.2 + 0.3 * i, 0.5, 0.2) for i in range(3))
    assert "pair" not in held_out_reasons(Scene("flat", "red", "row", "center", "small", things))
