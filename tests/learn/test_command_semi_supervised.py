import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewer.cli import main
from fewer.core.errors import ConfigError, DataError, FileError
from fewer.learn.command_semi_supervised import SemiSupervisedRequest, plan_of, read_rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    labels = np.arange(60) % 2
    images = torch.randint(0, 80, (60, 8, 8), generator=generator).numpy().astype(np.uint8)
    images[labels == 1, 2:5] += 120
    np.savez(
        tmp_path / "set.npz",
        train_images=images[:40],
        train_labels=labels[:40],
        test_images=images[40:],
        test_labels=labels[40:],
        class_names=["dark", "bright"],
    )
    return tmp_path / "set.npz"


def test_train_then_evaluate_then_predict(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    words = [
        "learn",
        "semi-supervised",
        "--data",
        str(data),
        "--output",
        str(output),
        "--labels-per-class",
        "2",
    ]
    words += ["--steps", "5", "--batch", "4", "--ratio", "2", "--device", "cpu", "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["labelled"] == 4
    assert {"accuracy", "balanced_accuracy", "auc", "labels_only", "verdict", "purity"} <= set(answer)
    for name in (
        "model/model.safetensors",
        "model/README.md",
        "report.html",
        "labelled.csv",
        "unlabelled.csv",
    ):
        assert (output / name).stat().st_size > 0
    assert (
        main(["learn", "evaluate", str(output / "model"), "--data", str(data), "--device", "cpu", "--json"])
        == 0
    )
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["accuracy"] == answer["accuracy"]
    assert main(["learn", "predict", str(output / "model"), str(data), "--device", "cpu", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["count"] == 20
    assert main(words) == 2 and "earlier run" in capsys.readouterr().err  # not overwritten
    assert main([*words, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == answer["accuracy"]
    shutil.rmtree(output / "checkpoints")
    assert main(words) == 2 and "holds a finished run (model)" in capsys.readouterr().err
    # The list that a run wrote trains the same labels again.
    again = read_rows(output / "labelled.csv")
    assert len(again) == 4


def test_names_with_commas_and_no_pictures_to_judge_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {name: value for name, value in np.load(data).items() if not name.startswith("test")}
    np.savez(tmp_path / "alone.npz", **{**arrays, "class_names": ["dark, or not", 'so "bright"']})
    words = ["learn", "semi-supervised", "--data", str(tmp_path / "alone.npz"), "--labels-per-class", "2"]
    words += ["--output", str(tmp_path / "run"), "--steps", "2", "--batch", "4", "--ratio", "2", "--json"]
    assert main([*words, "--device", "cpu"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"].startswith("Nothing was measured") and "accuracy" not in answer
    assert answer["verdict"] in (tmp_path / "run" / "report.html").read_text()
    with (tmp_path / "run" / "labelled.csv").open(newline="") as stream:
        names = [line["label"] for line in csv.DictReader(stream)]
    assert sorted(names) == ["dark, or not"] * 2 + ['so "bright"'] * 2


def test_pictures_from_files_are_told_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        kind = ("a", "b", "unlabelled")[number % 3]
        (tmp_path / "set" / "train" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 12), 20 * number).save(tmp_path / "set" / "train" / kind / f"scan{number}.png")
    words = ["learn", "semi-supervised", "--data", str(tmp_path / "set"), "--output", str(tmp_path / "run")]
    words += ["--steps", "2", "--batch", "4", "--ratio", "2", "--device", "cpu", "--json"]
    assert main(words) == 0
    tables = {}
    for name in ("labelled", "unlabelled"):
        with (tmp_path / "run" / f"{name}.csv").open(newline="") as stream:
            tables[name] = {line["file"]: line for line in csv.DictReader(stream)}
    assert tables["labelled"]["train/b/scan4.png"]["label"] == "b" and len(tables["labelled"]) == 8
    assert {name: line["labelled"] for name, line in tables["unlabelled"].items()} == {
        f"train/{('a', 'b', 'unlabelled')[k % 3]}/scan{k}.png": str(int(k % 3 < 2)) for k in range(12)
    }
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<figure>") == 4 and "train/unlabelled/scan5.png: " in page


def test_plan_takes_options_and_settings() -> None:
    request = SemiSupervisedRequest(
        data=Path("x"), output=Path("y"), steps=7, settings={"estimation": "instance"}
    )
    plan = plan_of(request)
    assert (plan.steps, plan.estimation) == (7, "instance")
    with pytest.raises(ConfigError, match="surprise"):
        plan_of(SemiSupervisedRequest(data=Path("x"), output=Path("y"), settings={"surprise": 1}))
    with pytest.raises(ConfigError, match="repeats steps"):
        plan_of(SemiSupervisedRequest(data=Path("x"), output=Path("y"), settings={"steps": 1}))


def test_exit_codes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["learn", "semi-supervised", "--output", str(tmp_path / "out"), "--device", "cpu", "--data"]
    assert main([*base, str(tmp_path / "none.npz")]) == 4
    assert main([*base, str(data), "--labels-per-class", "1000"]) == 3
    assert "class 'dark' has 20" in capsys.readouterr().err
    assert main([*base, str(data), "--cutoff", "1.5"]) == 2
    assert main([*base, str(data), "--labels-per-class", "2", "--labelled-list", "x.csv"]) == 2


def test_labelled_lists(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("row,label\n5,x\n2,y\n5,x\n")
    assert read_rows(tmp_path / "a.csv").tolist() == [2, 5]
    (tmp_path / "b.csv").write_text("row\n1\n-3\n")
    with pytest.raises(DataError, match="line 3"):
        read_rows(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(FileError, match="missing: row"):
        read_rows(tmp_path / "c.csv")
    (tmp_path / "e.csv").write_text("row\n")
    with pytest.raises(DataError, match="no rows"):
        read_rows(tmp_path / "e.csv")
    for odd in ("²", "9" * 30, "1.5"):
        (tmp_path / "b.csv").write_text(f"row\n{odd}\n")
        with pytest.raises(DataError, match="row number"):
            read_rows(tmp_path / "b.csv")
    with pytest.raises(FileError):
        read_rows(tmp_path / "d.csv")


def test_a_run_file_of_usb(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(
        "algorithm: fixmatch\nnum_labels: 6\nbatch_size: 4\nuratio: 2\n"
        "num_train_iter: 500\nema_m: 0.9\nodd: 1\n"
    )
    words = [
        "learn",
        "semi-supervised",
        "--data",
        str(data),
        "--output",
        str(tmp_path / "out"),
        "--steps",
        "2",
    ]
    assert main([*words, "--usb-config", str(run), "--device", "cpu", "--json"]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert (answer["method"], answer["labelled"]) == ("fixmatch", 6)
    assert "odd" in said.err
    stored = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert (stored["training"]["steps"], stored["training"]["ema"]) == (2, 0.9)
    run.write_text("num_labels: 5\n")
    assert main([*words, "--usb-config", str(run), "--device", "cpu"]) == 2
