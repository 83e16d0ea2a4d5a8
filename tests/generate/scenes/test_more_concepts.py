"""The names of the fourth edition."""

from fewer.generate.scenes.concepts import FIRST_CONCEPTS
from fewer.generate.scenes.more_concepts import MORE_CONCEPTS
from fewer.generate.scenes.vocabulary import ALIASES


def test_they_are_new_and_people_have_no_variants() -> None:
    assert not set(MORE_CONCEPTS) & set(FIRST_CONCEPTS)
    assert not set(MORE_CONCEPTS.values()) & set(FIRST_CONCEPTS.values())
    assert not [name for name in MORE_CONCEPTS if "skin-tone" in name or name.endswith("-hair")]


def test_other_words_for_things_are_words_of_nothing_else() -> None:
    words = {*FIRST_CONCEPTS.values(), *MORE_CONCEPTS.values()}
    assert set(ALIASES) <= words and not set(ALIASES.values()) & words
