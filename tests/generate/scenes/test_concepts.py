"""The vocabulary has no word twice, and no word that is another's plural."""

from fewer.generate.scenes.concepts import CONCEPTS, FIRST_CONCEPTS
from fewer.generate.scenes.vocabulary import COLOURS, plural


def test_every_word_means_one_thing() -> None:
    words = list(CONCEPTS.values())
    assert len(words) == len(set(words)) > 600
    assert not set(words) & {plural(word) for word in words if plural(word) != word}
    assert not set(words) & set(COLOURS)
    assert all(word == word.lower().strip() and len(word.split()) <= 4 for word in words)


def test_what_was_known_before_comes_first() -> None:
    assert list(CONCEPTS)[: len(FIRST_CONCEPTS)] == list(FIRST_CONCEPTS) and len(FIRST_CONCEPTS) == 262


def test_plurals_of_phrases() -> None:
    assert plural("pair of jeans") == "pairs of jeans" and plural("box of fries") == "boxes of fries"
    assert plural("heart with arrow") == "hearts with arrow" and plural("tooth") == "teeth"
    assert plural("die") == "dice" and plural("sheep") == "sheep" and plural("potato") == "potatoes"
