"""Prompts are cut into the longest forms that are known."""

import pytest

from fewer.generate.reading.words import Lexicon, singular

LEXICON = Lexicon(("dog", "hot dog", "t-rex", "cactus", "pair of scissors", "apple"), ("flat", "soft 3d"))


def cut(text: str) -> list[tuple[str, str]]:
    return [(piece.kind, piece.value or piece.text) for piece in LEXICON.pieces(text)]


def test_the_longest_name_wins():
    assert cut("Hot dog, dog") == [("thing", "hot dog"), ("mark", ","), ("thing", "dog")]


@pytest.mark.parametrize("text", ["T-Rex", "t rex", "the T-Rex's"])
def test_hyphens_case_and_possession_do_not_matter(text):
    assert cut(text)[-1] == ("thing", "t-rex")


def test_plurals_and_other_names():
    pieces = LEXICON.pieces("dogs cacti scissors red apples")
    assert [(piece.value, piece.many) for piece in pieces] == [
        ("dog", True),
        ("cactus", True),
        ("pair of scissors", False),
        ("apple", True),
    ]
    assert [piece.trained for piece in pieces] == [True, True, False, True]


def test_numbers_styles_and_colours():
    assert cut("2 tiny grey soft 3d") == [
        ("count", "two"),
        ("small", "small"),
        ("colour", "gray"),
        ("style", "soft 3d"),
    ]
    assert cut("seven") == [("count", "three")]  # the most that is drawn


@pytest.mark.parametrize("text", ["", "   ", "'", "日本", "\x00<b>", "a" * 5000, "dog " * 2000])
def test_any_text_is_cut(text):
    assert "".join(piece.text for piece in LEXICON.pieces(text)).isprintable()


@pytest.mark.parametrize(
    ("word", "one"), [("puppies", "puppy"), ("dress", "dress"), ("cats", "cat"), ("is", "is")]
)
def test_singular(word, one):
    assert singular(word) == one
