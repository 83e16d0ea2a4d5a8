import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.recommend.recommender import Recommender
from fewer.recommend.serving.index import ExactIndex, GraphIndex


def test_suggestions_are_the_highest_scores_in_the_user_s_own_ids(trained: Recommender) -> None:
    (answer,) = trained.suggest([["3", 4]], k=5, exclude_seen=False)
    assert answer.scores == sorted(answer.scores, reverse=True) and not answer.fallback
    every = trained.score([3, 4], trained.item_ids)
    best = sorted(zip(every, trained.item_ids, strict=True), reverse=True)[:5]
    assert answer.items == [name for _, name in best]
    np.testing.assert_allclose(answer.scores, [value for value, _ in best], rtol=1e-5)


def test_the_planted_rule_is_learned(trained: Recommender) -> None:
    metrics = trained.report["metrics"]
    assert metrics["automlp"]["ndcg_at_10"] > 0.8 > 2 * metrics["popularity"]["ndcg_at_10"]


def test_unknown_items_are_counted_and_an_empty_history_falls_back_to_popularity(
    trained: Recommender,
) -> None:
    known, unknown, empty = trained.suggest([[3, "nobody"], ["nobody"], []], k=3)
    assert (known.unknown, known.fallback) == (1, False)
    assert (unknown.unknown, unknown.fallback, empty.fallback) == (1, True, True)
    popular = trained.popularity[1:].argsort(descending=True, stable=True)
    assert set(empty.items) <= {trained.item_ids[i] for i in popular[:6]}
    assert empty.scores == sorted(empty.scores, reverse=True)


def test_k_beyond_the_items_seen_items_and_candidates(trained: Recommender) -> None:
    assert len(trained.suggest([[3]], k=999, exclude_seen=False)[0].items) == 20
    left_out = trained.suggest([[3, 4]], k=999, exclude_seen=True)[0].items
    assert len(left_out) == 18 and not {"3", "4"} & set(left_out)
    assert set(trained.suggest([[3]], k=9, candidates=["5", "6", "zz"])[0].items) == {"5", "6"}
    with pytest.raises(ConfigError, match="at least 1"):
        trained.suggest([[3]], k=0)


@pytest.mark.parametrize("exclude", [True, False])
def test_an_index_gives_the_same_answers(trained: Recommender, exclude: bool) -> None:
    histories = [[3, 4], [], [7], ["nobody", 1]]
    plain = trained.suggest(histories, k=4, exclude_seen=exclude)
    for index in (ExactIndex(trained.vectors()[1:], block=2), GraphIndex(trained.vectors()[1:])):
        trained.use_index(index)
        indexed = trained.suggest(histories, k=4, exclude_seen=exclude)
        trained._index = None
        for one, other in zip(plain, indexed, strict=True):
            assert set(one.items) == set(other.items) or one.fallback
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)


def test_saved_and_loaded_is_the_same_recommender(trained: Recommender, tmp_path: Path) -> None:
    loaded = Recommender.load(trained.save(tmp_path))
    assert loaded.suggest([[3, 4], []], 5) == trained.suggest([[3, 4], []], 5)
    assert loaded.report["metrics"] == trained.report["metrics"]


def test_a_damaged_folder_is_refused(trained: Recommender, tmp_path: Path) -> None:
    with pytest.raises(FileError) as missing:
        Recommender.load(tmp_path)
    assert missing.value.exit_code == 4
    for file, change in (
        ("items.json", lambda d: d | {"items": d["items"][:-3]}),
        ("config.json", lambda d: d | {"sizes": d["sizes"] | {"dim": 4096}}),
        ("config.json", lambda d: d | {"format": 99}),
        ("config.json", lambda d: d | {"method": "magic"}),
        ("config.json", lambda d: d | {"method": "sasrec"}),
        ("config.json", lambda d: d | {"sizes": {"surprise": 1}}),
    ):
        trained.save(tmp_path)
        content = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(change(content)))
        with pytest.raises((FileError, ConfigError)):
            Recommender.load(tmp_path)


def test_weights_that_belong_to_another_vocabulary_are_refused(trained: Recommender, tmp_path: Path) -> None:
    trained.save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = read_tensors(path)
    for changed in (
        {name: tensor for name, tensor in tensors.items() if name != "popularity"},
        tensors | {"popularity": tensors["popularity"][:-1]},
    ):
        write_tensors(path, changed)
        with pytest.raises(FileError, match="popularity"):
            Recommender.load(tmp_path)
    write_tensors(path, tensors | {"features.0": torch.tensor([[9]])})
    names = json.loads((tmp_path / "items.json").read_text())
    for words in ({"kind": ["a"]}, {"kind": 3}, ["kind"]):
        (tmp_path / "items.json").write_text(json.dumps(names | {"features": words}))
        with pytest.raises(FileError, match="feature"):
            Recommender.load(tmp_path)
