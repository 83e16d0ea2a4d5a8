import json
from pathlib import Path

import numpy as np
import pytest

from fewer.cli import main
from fewer.core.errors import FileError
from fewer.learn.distillation.command_indicator import SHIPPED, read_points
from fewer.learn.distillation.indicator import fit_indicator
from tests.learn.distillation.conftest import make_pictures

FAST = [
    "--image-size",
    "8",
    "--width",
    "8",
    "--epochs",
    "5",
    "--networks",
    "1",
    "--draws",
    "2",
    "--images-per-class",
    "2",
]


def data(folder: Path, name: str, seed: int) -> str:
    train, test = make_pictures(seed=seed), make_pictures(count=30, seed=seed + 50)
    np.savez(
        folder / f"{name}.npz",
        train_images=train.images[..., 0].numpy(), train_labels=train.labels.numpy(),
        test_images=test.images[..., 0].numpy(), test_labels=test.labels.numpy(),
    )  # fmt: skip
    return str(folder / f"{name}.npz")


def test_the_shipped_points_make_an_indicator() -> None:
    points = read_points(SHIPPED)
    assert len(points) >= 8 and fit_indicator(points).sets == len(points)


def test_one_set_is_forecast_and_many_are_studied(tmp_path: Path, capsys) -> None:
    sets = [data(tmp_path, f"s{k}", k) for k in range(4)]
    points = tmp_path / "points.json"
    words = [
        "learn",
        "indicator",
        "--data",
        *sets,
        *FAST,
        "--iterations",
        "2",
        "--output",
        str(points),
        "--json",
    ]
    assert main(words) == 0
    study = json.loads(capsys.readouterr().out)
    assert len(study["points"]) == 4 and "leave_one_out_error" in study
    assert main(["learn", "indicator", "--data", sets[0], *FAST, "--points", str(points), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["range_90_percent"][0] <= found["expected_balanced_accuracy"] <= found["range_90_percent"][1]
    assert found["advice"] and "note" not in found
    read = json.loads(points.read_text())
    points.write_text(json.dumps({**read, "images_per_class": 50}))
    assert main(["learn", "indicator", "--data", sets[0], *FAST, "--points", str(points), "--json"]) == 0
    warned = capsys.readouterr()
    assert "measured with 50 images per class" in json.loads(warned.out)["note"] and "warning" in warned.err


@pytest.mark.parametrize(
    "text",
    [
        '{"points": 3}',
        '{"points": [{"name": "a"}]}',
        '{"points": [{"name": "a", "random": 2, "distilled": 0}]}',
    ],
)
def test_a_wrong_points_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(FileError):
        read_points(tmp_path / "p.json")
