"""Nearest names by a text model's states."""

import pytest

from fewer.generate.reading.nearest import NearestName
from tests.generate.reading.stand_in import Letters

NAMES = ("dog", "cat", "rabbit", "zebra")


def test_a_name_is_nearest_to_itself_and_a_part_of_it_to_it():
    near = NearestName(Letters(), NAMES)
    assert [name for name, _ in near(NAMES)] == list(NAMES)
    assert all(value > 0.999 for _, value in near(NAMES))
    name, value = near(["rabbi"])[0]
    assert name == "rabbit" and 0.5 < value < 1


def test_names_are_read_once_and_nothing_is_read_for_nothing():
    model = Letters()
    near = NearestName(model, NAMES)
    assert sorted(model.read) == sorted(f"a {name}" for name in NAMES)
    assert near([]) == []
    near(["dig"])
    assert model.read[4:] == ["a dig"]


def test_a_word_does_not_depend_on_those_beside_it():
    near = NearestName(Letters(), NAMES)
    words = [f"{'x' * length}cat" for length in range(70)]
    together, alone = near(words), [near([word])[0] for word in words]
    assert [name for name, _ in together] == [name for name, _ in alone]
    assert [value for _, value in together] == pytest.approx([value for _, value in alone], abs=1e-5)
