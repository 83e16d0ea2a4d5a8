"""What is found in a prompt becomes a caption."""

import pytest

from fewer.generate.reading.sentence import Thing, background_of, caption_of
from fewer.generate.reading.words import Lexicon

LEXICON = Lexicon(("dog", "cat", "apple", "couch"), ("flat", "soft 3d"))


def caption(prompt: str) -> str:
    pieces = LEXICON.pieces(prompt)
    return caption_of(pieces, [Thing(p.value, at) for at, p in enumerate(pieces) if p.kind == "thing"])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("my dog", "a dog"),
        ("a little dog there on the left, flat", "a small flat dog on the left"),
        ("some apple at the top of a grey background", "an apple at the top on a gray background"),
        ("the top of a dog", "a dog"),
        ("a cat to the right of a dog", "a dog to the left of a cat"),
        ("a cat sitting on a dog", "a cat above a dog"),
        ("a cat sleeping under a dog in 3d", "a 3d cat below a 3d dog"),
        ("a cat likes a dog on blue", "a cat to the left of a dog on a blue background"),
        ("a dog and another dog", "two dogs"),
    ],
)
def test_captions(prompt, said):
    assert caption(prompt) == said


@pytest.mark.parametrize(
    ("prompt", "colour"),
    [
        ("a dog on a white table", "white"),
        ("a dog on purple", "purple"),
        ("a dog, red background", "red"),
        ("a red dog", ""),
        ("a cat on a red couch", ""),
    ],
)
def test_the_colour_of_a_thing_is_not_that_of_the_background(prompt, colour):
    assert background_of(LEXICON.pieces(prompt)) == colour


def test_a_number_goes_with_one_kind_of_thing():
    assert caption_of((), [Thing("dog", 0, "three")]) == "three dogs"
    assert caption_of((), [Thing("dog", 0, "three"), Thing("cat", 2)]) == "a dog to the left of a cat"
