"""Words of the scenes."""

import json

import numpy as np
import pytest

from fewer.core.errors import ConfigError, FileError
from fewer.generate.scenes.vocabulary import COLOURS, SMALL_VOCABULARY, STYLES, plural, wide_vocabulary


@pytest.mark.parametrize(
    "word,expected",
    [("cat", "cats"), ("bus", "buses"), ("strawberry", "strawberries"), ("fox", "foxes"), ("key", "keys"),
     ("fish", "fish"), ("cactus", "cacti")],
)  # fmt: skip
def test_plurals(word: str, expected: str) -> None:
    assert plural(word) == expected


def test_colours_can_be_told_apart() -> None:
    table = np.array(list(COLOURS.values()), dtype=float)
    distance = np.linalg.norm(table[:, None] - table[None], axis=2) + 1e9 * np.eye(len(table))
    assert len(COLOURS) == 12 and distance.min() > 45


def test_words_are_unique_and_no_style_is_share_alike() -> None:
    assert len(set(SMALL_VOCABULARY.values())) == len(SMALL_VOCABULARY)
    assert all("SA" not in style.licence for style in STYLES.values())


def test_the_wide_vocabulary_holds_what_every_package_draws(tmp_path) -> None:
    for package, names in (
        ("noto", ["cat-face", "frog", "a-b-c-d"]),
        ("fluent-emoji-flat", ["cat-face", "a-b-c-d"]),
    ):
        folder = tmp_path / "@iconify-json" / package
        folder.mkdir(parents=True)
        (folder / "icons.json").write_text(json.dumps({"icons": {name: {"body": ""} for name in names}}))
    listed = {"categories": {"Animals & Nature": ["frog", "cat-face", "a-b-c-d"], "Flags": ["cat-face"]}}
    (tmp_path / "@iconify-json" / "noto" / "metadata.json").write_text(json.dumps(listed))
    assert wide_vocabulary(tmp_path, ("glossy", "flat")) == {"cat-face": "cat"}
    with pytest.raises(FileError):
        wide_vocabulary(tmp_path, ("soft 3d",))
    with pytest.raises(ConfigError, match="outlined"):
        wide_vocabulary(tmp_path, ("outlined",))
