from pathlib import Path

import numpy as np
import pytest
import torch

from fewer.core.files import read_json
from fewer.core.tensors import read_tensors
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
