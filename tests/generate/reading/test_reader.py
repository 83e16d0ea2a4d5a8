"""Captions stay as they are; other prompts are said in the words of captions, or left alone."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewer.generate.reading import PromptReader, reader_of
from fewer.generate.scenes.captions import WHERE, captions_of
from fewer.generate.scenes.compose import Placed, Scene
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.vocabulary import COLOURS
from tests.generate.reading.stand_in import Letters

EMOJI = preset("emoji")
FEW = PromptReader(Letters(), ("dog", "cat", "zebra"), ("flat", "soft 3d"))
PIECES = ("a", "dog", "cats", "and", "two", "on", "red", "background", "flat", ",", "left", "of", "xyz", "3d")


@pytest.fixture(scope="module")
def reader() -> PromptReader:
    found = reader_of("emoji", Letters(rare=("elefant", "burger", "strawbery")))
    assert found is not None
    return found


def test_a_model_without_words_has_no_reader():
    assert reader_of(None, Letters()) is None


def scenes() -> Iterator[Scene]:
    """Every name twice, in all arrangements, places, styles, colours and sizes."""
    names, colours = tuple((EMOJI.concepts or {}).values()), tuple(COLOURS)
    for number, (one, other) in enumerate(zip(names, names[1:] + names[:1], strict=True)):
        kind, count = (("single", 1), ("pair", 2), ("stack", 2), ("row", 2), ("row", 3))[number % 5]
        words = (one, other) if kind in ("pair", "stack") else (one,) * count
        yield Scene(
            style=EMOJI.styles[number % 3],
            colour=colours[number % 12],
            arrangement=kind,  # type: ignore[arg-type]
            place=tuple(WHERE)[number % 7 % 5] if kind == "single" else "center",  # type: ignore[arg-type]
            size=("small", "large")[number % 2],  # type: ignore[arg-type]
            objects=tuple(Placed(word, 0.5, 0.5, 0.4) for word in words),
        )


def test_every_caption_stays_as_it_is(reader):
    captions = [caption.text for scene in scenes() for caption in captions_of(scene)]
    assert len(captions) > 5000
    assert [text for text in captions if reader.read(text) != text] == []


def test_what_is_read_is_a_caption_and_stays_as_it_is(reader):
    for prompt in ("three happy dogs", "a cat under a tree", "shiny keys on a grey wall", "an old house, 3d"):
        read = reader.read(prompt)
        assert read != prompt and reader.read(read) == read


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("A Photo of a SNOWMAN in winter", "a snowman"),
        ("a bear holding a balloon", "a bear to the left of a balloon"),
        ("the king's dog", "a dog"),
        ("mushrooms", "three mushrooms"),
        ("seven cats and a dog", "a cat to the left of a dog"),
        ("I saw a dog without a hat", "a dog"),
        ("cute baby penguin, digital art", "a penguin"),
        ("an elefant", "an elephant"),
        ("a strawbery", "a strawberry"),
        ("a burger and fries", "a hamburger to the left of a box of fries"),
        ("a cat, a dog and a mouse", "a cat to the left of a dog"),
        ("two deer in the woods", "two deer"),
        ("a snake hiding under a rock", "a snake below a rock"),
        ("an elefant, 4k, highly detailed", "an elephant"),
        ("seven keys on a grey table", "three keys on a gray background"),
    ],
)
def test_prompts_in_other_words(reader, prompt, read):
    assert reader.read(prompt) == read


def test_a_word_that_is_no_name_is_taken_for_the_nearest_in_a_phrase_of_its_own():
    reader = PromptReader(Letters(), ("dog", "rabbit", "zebra"), ("flat",))
    assert reader.read("a grey rabbi") == "a rabbit"
    assert reader.read("rabbis") == "three rabbits"
    assert reader.read("a dog and a rabbi") == "a dog to the left of a rabbit"
    assert reader.read("a dog to the left of a rabbi") == "a dog to the left of a rabbit"
    assert reader.read("a dog on the right of the rabbi") == "a rabbit to the left of a dog"
    assert reader.read("a dog, a rabbi") == "a dog"  # what stands behind a comma often only describes


@pytest.mark.parametrize("prompt", ["", " ", "qqq", "no dog", "!!!", "日本語", "the of and"])
def test_where_nothing_is_known_the_prompt_is_drawn(prompt):
    reader = PromptReader(Letters(), ("dog", "rabbit", "zebra"), ("flat",))
    assert reader.read(prompt) == prompt


def test_of_a_very_long_prompt_the_beginning_is_read():
    model = Letters(rare=("elephent",))
    reader = PromptReader(model, ("dog", "elephant"), ("flat",))
    assert reader.read("elephent " * 3_000) == "an elephant"
    assert reader.read("qqq " * 3_000) == "qqq " * 3_000
    assert len(model.read) <= 2 + 64


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4)))
def test_reading_twice_is_reading_once(words):
    once = FEW.read(" ".join(words))
    assert FEW.read(once) == once
