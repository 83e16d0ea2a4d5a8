"""Tables of scenes: of the asked split, repeatable, and rendered as their scenes are."""

import numpy as np
import pytest

from fewer.core.errors import ConfigError
from fewer.generate.scenes.split import split_of
from fewer.generate.scenes.table import draw_any, draw_table, splits_of
from fewer.generate.scenes.vocabulary import SMALL_VOCABULARY, Vocabulary

WORDS = Vocabulary(tuple(SMALL_VOCABULARY.values()), ("glossy", "flat"))


@pytest.mark.parametrize("split", ["train", "validation", "held-out"])
def test_scenes_are_of_the_asked_split_and_repeatable(split: str) -> None:
    scenes = draw_table(WORDS, 5, split, seed=4).scenes()  # type: ignore[arg-type]
    assert len(scenes) == 5 and {split_of(scene) for scene in scenes} == {split}
    assert scenes == draw_table(WORDS, 5, split, seed=4).scenes()  # type: ignore[arg-type]
    assert scenes != draw_table(WORDS, 5, split, seed=5).scenes()  # type: ignore[arg-type]


def test_splits_of_a_table_are_those_of_its_scenes() -> None:
    table = draw_any(WORDS, 1000, np.random.default_rng(0))
    assert splits_of(table).tolist() == [split_of(scene) for scene in table.scenes()]


def test_a_vocabulary_without_held_out_scenes_says_so(monkeypatch) -> None:
    monkeypatch.setattr("fewer.generate.scenes.table.splits_of", lambda table: np.full(len(table), "train"))
    monkeypatch.setattr("fewer.generate.scenes.table._MOST_BLOCKS", 2)
    with pytest.raises(ConfigError, match="hardly any held-out"):
        draw_table(Vocabulary(("cat",), ("flat",)), 1, "held-out", 0)


def test_a_table_is_placed_as_its_scenes_are(renderer, vocabulary) -> None:
    table = draw_table(vocabulary, 40, "train", 1)
    fast = renderer.render(table.placed(renderer)).numpy()
    assert np.array_equal(fast, renderer.pictures(table.scenes()))
    assert np.array_equal(fast[7], renderer(table.scene(7)))
