from pathlib import Path

import numpy as np
import pytest
import torch

from fewer.core.files import read_json
from fewer.core.tensors import read_tensors
from fewer.recommend.automlp import AutoMLP
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.recommender import Recommender
from fewer.recommend.serving.export import export_onnx, run_encoder

pytest.importorskip("onnxscript")


def test_onnxruntime_gives_the_same_vectors_and_the_same_top_ten(
    trained: Recommender, tmp_path: Path
) -> None:
    exported = export_onnx(trained, tmp_path)
    assert exported.largest_difference < 1e-4
    rng = np.random.default_rng(0)
    histories = rng.integers(1, 21, (100, 7)) * (np.arange(7) >= rng.integers(0, 7, (100, 1)))
    vectors = read_tensors(exported.vectors)["vectors"].numpy()
    scores = run_encoder(exported.encoder, histories) @ vectors.T
    with torch.no_grad():
        own = (trained.network(torch.from_numpy(histories)) @ trained.vectors().T).numpy()
    np.testing.assert_array_equal(np.argsort(-scores[:, 1:], 1)[:, :10], np.argsort(-own[:, 1:], 1)[:, :10])
    assert read_json(exported.items)["items"] == trained.item_ids


def test_a_model_with_features_survives_an_export_into_its_own_folder(
    planted: Interactions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = ItemFeatures.build(planted.item_ids, {"colour": {one: [one[-1]] for one in planted.item_ids}})
    sizes = {"length": 5, "dim": 8, "layers": 1, "candidates": (2,)}
    made = AutoMLP.fit(planted, epochs=1, features=features, **sizes)
    made.save(tmp_path)
    monkeypatch.setattr("fewer.recommend.serving.export._export", lambda *_: None)
    export_onnx(made, tmp_path, check=False)
    loaded = AutoMLP.load(tmp_path)
    assert loaded.features is not None and loaded.features.vocabularies == features.vocabularies
    assert loaded.suggest([planted.item_ids[:3]]) == made.suggest([planted.item_ids[:3]])
