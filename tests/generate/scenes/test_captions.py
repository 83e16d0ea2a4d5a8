"""Captions tell the scene, and their scores say how much of it."""

import numpy as np
import pytest

from fewer.generate.scenes.captions import captions_of, full_caption
from fewer.generate.scenes.compose import Placed, Scene
from fewer.generate.scenes.table import draw_scene


def scene(arrangement: str, concepts: tuple[str, ...], place: str = "center", size: str = "large") -> Scene:
    things = tuple(Placed(word, 0.2 + 0.3 * index, 0.5, 0.25) for index, word in enumerate(concepts))
    return Scene("flat", "orange", arrangement, place, size, things)  # type: ignore[arg-type]


def test_examples() -> None:
    assert full_caption(scene("single", ("octopus",))) == "a flat octopus on an orange background"
    assert "an octopus on the left" in [
        c.text for c in captions_of(scene("single", ("octopus",), "left", "medium"))
    ]
    small = [c.text for c in captions_of(scene("single", ("apple",), size="small"))]
    assert "a small apple on an orange background" in small
    assert full_caption(scene("row", ("fox",) * 3)) == "three flat foxes on an orange background"
    pair = [c.text for c in captions_of(scene("pair", ("cat", "apple")))]
    assert "a cat to the left of an apple on an orange background, flat style" in pair
    assert "an apple to the right of a cat on an orange background, flat style" in pair


def test_every_caption_names_its_concepts_and_the_full_ones_tell_all(vocabulary) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        drawn = draw_scene(vocabulary.words, vocabulary.styles, random)
        for caption in captions_of(drawn):
            assert caption.text == caption.text.lower().strip() and "{" not in caption.text
            assert all(word[:3] in caption.text for word in drawn.concepts)  # also with an alias
            told = (drawn.style in caption.text) + (f"{drawn.colour} background" in caption.text)
            assert caption.score == pytest.approx(25 + 5 * (1 + told) / 3)


def test_captions_are_different_and_all_pass_the_usual_threshold() -> None:
    for drawn in (scene("single", ("cat",)), scene("pair", ("cat", "dog")), scene("row", ("cat", "cat"))):
        found = captions_of(drawn)
        assert len({caption.text for caption in found}) == len(found) >= 6
        assert min(caption.score for caption in found) >= 25


def test_a_thing_may_carry_a_colour_of_its_own() -> None:
    found = [caption.text for caption in captions_of(scene("row", ("apple",) * 3))]
    assert "three red apples on an orange background, flat style" in found
    assert found[0] == "three flat apples on an orange background"
