from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.recommend.data.features import FeatureTable, ItemFeatures, bag, pad_lists, read_features

COLUMNS = {"class": {"a": ["war", "drama"], "b": ["war"]}, "year": {"a": ["1999"]}}


def test_lists_are_mean_pooled_and_items_without_words_are_zero() -> None:
    features = ItemFeatures.build(["a", "b", "c"], COLUMNS)
    table = FeatureTable(features, dim=4)
    out = table(torch.tensor([[1, 2, 3, 0]]))
    words = table.words[0].weight
    assert out.shape == (1, 4, 2, 4)
    torch.testing.assert_close(out[0, 0, 0], (words[1] + words[2]) / 2)
    torch.testing.assert_close(out[0, 1, 0], words[1])
    assert out[0, 2:].abs().max() == 0


def test_bags_are_shares_and_new_items_use_the_same_words() -> None:
    features = ItemFeatures.build(["a", "b"], COLUMNS)
    assert features.bags().tolist() == [[0, 0, 0], [0.5, 0.5, 1.0], [1, 0, 0]]
    rows, unknown = features.encode({"class": ["drama", "opera"]})
    assert rows == [[2], []] and unknown == 1
    assert bag(pad_lists([rows[0], []]), 2).tolist() == [[0, 1], [0, 0]]
    with pytest.raises(ConfigError, match="no features"):
        ItemFeatures.build(["a"], {})


def test_features_are_read_from_recbole_items_and_from_csv(tmp_path: Path) -> None:
    item = tmp_path / "x.item"
    item.write_text("item_id:token\tclass:token_seq\tyear:token\na\tdrama war\t1999\nb\t\t2000\n")
    assert read_features(item, ["class"]) == {"class": {"a": ["drama", "war"], "b": []}}
    table = tmp_path / "x.csv"
    table.write_text("item,tags\na,red|big\n")
    assert read_features(table) == {"tags": {"a": ["red", "big"]}}
    with pytest.raises(FileError, match="no feature column"):
        read_features(table, ["brand"])
