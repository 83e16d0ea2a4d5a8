import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewer.core.errors import DataError, FileError
from fewer.core.progress import SilentProgress
from fewer.learn.command_predict import PredictRequest, predict_command
from fewer.learn.data import load_images
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network


@pytest.fixture
def model(tmp_path: Path) -> Path:
    plan = NetworkPlan(name="small-cnn", channels=3, classes=2, height=8, width=8)
    network = build_network(plan).eval()
    TrainedClassifier(network, plan, ("a", "b"), torch.zeros(3), torch.ones(3)).save(tmp_path / "model")
    return tmp_path / "model"


def predict(model: Path, *pictures: Path, output: Path | None = None) -> dict:
    return predict_command(
        PredictRequest(model=model, pictures=pictures, output=output, device="cpu"), SilentProgress()
    )


def test_files_folders_and_arrays_agree(model: Path, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8).numpy()
    (tmp_path / "in").mkdir()
    for i, array in enumerate(pixels):
        Image.fromarray(array).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "._0.png").write_bytes(b"hidden")
    np.savez(tmp_path / "set.npz", images=pixels)
    by_folder = predict(model, tmp_path / "in", output=tmp_path / "p.csv")
    by_array = predict(model, tmp_path / "set.npz")
    by_file = predict(model, tmp_path / "in" / "1.png")
    pairs = [(p["class"], p["confidence"]) for p in by_folder["predictions"]]
    assert pairs == [(p["class"], p["confidence"]) for p in by_array["predictions"]]
    assert by_file["predictions"][0]["confidence"] == by_folder["predictions"][1]["confidence"]
    with (tmp_path / "p.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [line["class"] for line in lines] == [pair[0] for pair in pairs]
    assert all(abs(float(line["a"]) + float(line["b"]) - 1) < 1e-5 for line in lines)


def test_pictures_are_fitted_as_in_training(model: Path, tmp_path: Path) -> None:
    trained = TrainedClassifier.load(model)
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = np.random.default_rng(0).integers(0, 255, (8, 8, 3))
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide[:, 8:16]).save(tmp_path / "middle.png")
    for fit, same in (("crop", True), ("squeeze", False), ("strange", False)):
        replace(trained, training={"fit": fit}).save(tmp_path / fit)
        wide_one, middle = (predict(tmp_path / fit, tmp_path / f"{n}.png") for n in ("wide", "middle"))
        found = [one["predictions"][0]["confidence"] for one in (wide_one, middle)]
        assert (found[0] == found[1]) == same


def test_arrays_are_resized_as_for_evaluation(model: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (40, 21, 21, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", test_images=pixels, test_labels=np.arange(40) % 2, class_names=["a", "b"])
    predict(model, tmp_path / "set.npz", output=tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as stream:
        found = [float(line["a"]) for line in csv.DictReader(stream)]
    evaluated = TrainedClassifier.load(model).predict(load_images(tmp_path / "set.npz", size=8).test.images)  # pyright: ignore
    np.testing.assert_allclose(found, evaluated[:, 0], atol=2e-6)


def test_other_sizes_and_grey_are_fitted(model: Path, tmp_path: Path) -> None:
    Image.new("L", (30, 13), 90).save(tmp_path / "grey.png")
    assert predict(model, tmp_path / "grey.png")["count"] == 1


def test_bad_input(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError) as missing:
        predict(model, tmp_path / "none.png")
    assert missing.value.missing
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        predict(model, tmp_path / "empty")
    (tmp_path / "empty" / "scan.dcm").write_bytes(b"DICM")
    with pytest.raises(DataError, match=r"scan\.dcm: \.dcm pictures are not read"):
        predict(model, tmp_path / "empty")  # not left out in silence
    (tmp_path / "x.png").write_bytes(b"not a picture")
    with pytest.raises(FileError):
        predict(model, tmp_path / "x.png")
    for pixels, message in (
        (np.full((2, 8, 8), 9.0), r"\[0, 1\]"),
        (np.full((2, 8, 8), 999), "0 .. 255"),
        (np.zeros((2, 0, 8), np.uint8), "shape"),
        (np.array(3), "shape"),
        (np.zeros((2, 8, 8, 4), np.uint8), "shape"),
    ):
        np.savez(tmp_path / "f.npz", images=pixels)
        with pytest.raises(DataError, match=message):
            predict(model, tmp_path / "f.npz")
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="12 bits"):
        predict(model, tmp_path / "deep.png")
    np.savez(tmp_path / "o.npz", other=np.zeros(2))
    with pytest.raises(DataError, match="no array"):
        predict(model, tmp_path / "o.npz")
    with pytest.raises(FileError):
        predict(tmp_path / "nomodel", tmp_path / "x.png")
