import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.learn.data import make_labelled_images
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network

IMAGES = torch.randint(0, 256, (7, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> TrainedClassifier:
    plan = NetworkPlan(name="small-cnn", classes=3, height=8, width=8)
    network = build_network(plan, 1).eval()
    return TrainedClassifier(
        network, plan, ("a", "b", "c"), torch.tensor([0.4]), torch.tensor([0.3]), {"method": "none"}
    )


def test_round_trip_gives_equal_probabilities(model: TrainedClassifier, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = TrainedClassifier.load(tmp_path / "model")
    assert torch.equal(again.predict(IMAGES), model.predict(IMAGES))
    assert (again.class_names, again.plan, again.training) == (model.class_names, model.plan, model.training)
    assert "| method | none |" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize(("dtype", "near"), [("bf16", 0.03), ("fp16", 0.004)])
def test_sixteen_bits_answer_nearly_the_same(
    model: TrainedClassifier, tmp_path: Path, dtype: str, near: float
) -> None:
    model.save(tmp_path / "model")
    answers = TrainedClassifier.load(tmp_path / "model", "cpu", dtype).predict(IMAGES)
    assert answers.dtype == torch.float32
    assert 0 < (answers - model.predict(IMAGES)).abs().max() < near


def test_batch_size_does_not_matter_and_rows_sum_to_one(model: TrainedClassifier) -> None:
    whole = model.predict(IMAGES)
    torch.testing.assert_close(model.predict(IMAGES, batch=2), whole)
    torch.testing.assert_close(whole.sum(1), torch.ones(7))
    assert model.predict(IMAGES[:0]).shape == (0, 3)


def test_classes_are_matched_by_name(model: TrainedClassifier) -> None:
    labels = model.predict(IMAGES).argmax(1)
    assert model.evaluate(make_labelled_images(IMAGES, labels, ["a", "b", "c"])).accuracy == 1
    turned = torch.tensor([2, 1, 0])[labels]
    assert model.evaluate(make_labelled_images(IMAGES, turned, ["c", "b", "a"])).accuracy == 1
    with pytest.raises(DataError, match="'z' is unknown"):
        model.evaluate(make_labelled_images(IMAGES, labels, ["a", "b", "z"]))
    with pytest.raises(DataError, match="the model needs"):
        model.predict(torch.zeros(1, 9, 8, 1, dtype=torch.uint8))


def change(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"kind": "other"}, FileError),
        ({"surprise": 1}, ConfigError),
        ({"class_names": ["a", "b"]}, ConfigError),
        ({"mean": [0.1, 0.2]}, ConfigError),
        ({"deviation": [0.0]}, ConfigError),
        ({"network": {"name": "small-cnn", "classes": 10**9}}, ConfigError),
        ({"network": {"name": "small-cnn", "classes": "many"}}, ConfigError),
        ({"network": {"name": "wrn-28-2", "classes": 3, "height": 8, "width": 8}}, FileError),
        ({"network": {"name": "small-cnn", "channels": 3, "classes": 3}, "mean": [0] * 3}, ConfigError),
    ],
)
def test_hostile_configs(model: TrainedClassifier, tmp_path: Path, values: dict, error: type) -> None:
    model.save(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(error):
        TrainedClassifier.load(tmp_path)


def test_missing_and_extra_tensors(model: TrainedClassifier, tmp_path: Path) -> None:
    model.save(tmp_path)
    tensors = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "model.safetensors", {**tensors, "more": torch.zeros(1)})
    with pytest.raises(FileError, match="'more'"):
        TrainedClassifier.load(tmp_path)
    tensors.pop("classifier.bias")
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(FileError, match=r"classifier\.bias"):
        TrainedClassifier.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileError) as missing:
        TrainedClassifier.load(tmp_path)
    assert missing.value.missing


def test_the_card_holds_no_markup_of_others(model: TrainedClassifier, tmp_path: Path) -> None:
    names = ("<script>\n# a", *model.class_names[1:])
    replace(model, class_names=names, training={"target": "<b>|"}).save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "<" not in card and "\n# a" not in card and "&lt;script> # a" in card


def test_the_folder_of_a_run_is_taken_for_its_model(model: TrainedClassifier, tmp_path: Path) -> None:
    model.save(tmp_path / "run" / "model")
    assert TrainedClassifier.load(tmp_path / "run").class_names == model.class_names
