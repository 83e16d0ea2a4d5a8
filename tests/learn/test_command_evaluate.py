from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.progress import SilentProgress
from fewer.learn.command_evaluate import EvaluateRequest, choose_split, evaluate_command, kind_of
from fewer.learn.data import ImageSplits, make_labelled_images
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network

SOME = make_labelled_images(torch.zeros(2, 4, 4, dtype=torch.uint8), [0, 1])
NONE = make_labelled_images(torch.zeros(2, 4, 4, dtype=torch.uint8), [-1, -1], ["a", "b"])


def test_what_the_path_holds_decides(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    (tmp_path / "x.pt").write_bytes(b"")
    assert kind_of(tmp_path) == "classifier"
    assert kind_of(tmp_path / "x.safetensors") == "distilled"
    with pytest.raises(ConfigError, match="safetensors"):
        kind_of(tmp_path / "x.pt")
    with pytest.raises(FileError):
        kind_of(tmp_path / "none")


def test_split_is_test_then_validation_then_train() -> None:
    assert choose_split(ImageSplits(NONE, SOME, None), "auto") is not None
    assert len(choose_split(ImageSplits(SOME, None, NONE), "auto")) == 2
    with pytest.raises(DataError, match="no labelled pictures in test"):
        choose_split(ImageSplits(SOME, None, None, "set"), "test")


def test_pictures_are_brought_to_the_size_of_the_model(tmp_path: Path) -> None:
    plan = NetworkPlan(name="small-cnn", classes=2, height=8, width=8)
    mean, deviation = torch.tensor([0.5]), torch.tensor([0.5])
    model = TrainedClassifier(build_network(plan, 0).eval(), plan, ("0", "1"), mean, deviation)
    model.save(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", test_images=pixels, test_labels=np.arange(6)[:, None] % 2)
    request = EvaluateRequest(model=tmp_path / "model", data=tmp_path / "set.npz", device="cpu")
    assert evaluate_command(request, SilentProgress())["count"] == 6
    colour = np.repeat(pixels[..., None], 3, 3)  # the same pictures, as another camera stores them
    np.savez(tmp_path / "rgb.npz", test_images=colour, test_labels=np.arange(6)[:, None] % 2)
    grey, rgb = (
        evaluate_command(replace(request, data=tmp_path / name), SilentProgress())
        for name in ("set.npz", "rgb.npz")
    )
    assert {**rgb, "data": "set"} == grey


def test_sixteen_bits_are_for_classifiers_alone(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    pixels = np.zeros((6, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", test_images=pixels, test_labels=np.arange(6) % 2)
    request = EvaluateRequest(model=tmp_path / "x.safetensors", data=tmp_path / "set.npz", dtype="bf16")
    with pytest.raises(ConfigError, match="computes in fp32"):
        evaluate_command(request, SilentProgress())
