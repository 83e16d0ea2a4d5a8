import json
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import write_tensors
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network

PLAN = NetworkPlan(name="vit", channels=1, classes=3, height=10, width=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_the_body_has_the_weights_of_the_folder(folder: Path) -> None:
    from transformers import ViTModel

    network = build_network(PLAN, folder=str(folder)).eval()
    images = torch.randn(2, 3, 8, 8)
    theirs = ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True).eval()
    torch.testing.assert_close(network.features(images), theirs(images).last_hidden_state[:, 0])
    assert network(torch.randn(2, 1, 10, 10)).shape == (2, 3)


def test_model_folder_round_trip(folder: Path, tmp_path: Path) -> None:
    network = build_network(PLAN, folder=str(folder)).eval()
    model = TrainedClassifier(network, PLAN, ("a", "b", "c"), torch.tensor([0.5]), torch.tensor([0.2]))
    model.save(tmp_path / "model")
    images = torch.randint(0, 256, (3, 10, 10, 1), dtype=torch.uint8)
    again = TrainedClassifier.load(tmp_path / "model")
    torch.testing.assert_close(again.predict(images), model.predict(images))


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        build_network(PLAN)
    write_tensors(folder / "model.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(FileError, match="missing"):
        build_network(PLAN, folder=str(folder))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="bert"):
        build_network(PLAN, folder=str(tmp_path))
