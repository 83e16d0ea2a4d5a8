import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewer.cli import main
from fewer.learn.distillation.command_distill import DistillRequest, plan_of
from fewer.learn.distillation.distilled_set import DistilledSet
from tests.learn.distillation.conftest import make_pictures

FAST = ["--iterations", "2", "--width", "8", "--real-batch", "8", "--epochs", "3", "--networks", "1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    train, test = make_pictures(count=60), make_pictures(count=30, seed=1)
    arrays = {
        "train_images": train.images[..., 0].numpy(),
        "train_labels": train.labels[:, None].numpy(),
        "test_images": test.images[..., 0].numpy(),
        "test_labels": test.labels[:, None].numpy(),
    }
    np.savez(tmp_path / "data.npz", **arrays)
    np.savez(tmp_path / "patients.npz", train_patients=np.arange(60) // 2)
    return tmp_path / "data.npz"


def run(capsys: pytest.CaptureFixture, *words: object) -> dict:
    code = main([str(word) for word in words] + ["--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def test_one_command_writes_file_page_and_datasheet(data: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out" / "a.distilled.safetensors"
    found = run(
        capsys, "learn", "distill", "--data", data, "--output", output, "--images-per-class", 2, *FAST,
        "--full", "--across", "--licence", "CC BY 4.0", "--title", "Bars",
    )  # fmt: skip
    assert {"accuracy", "balanced_accuracy", "auc", "random", "full", "seconds", "output"} <= set(found)
    made = DistilledSet.load(output)
    assert made.datasheet.title == "Bars" and made.datasheet.licence == "CC BY 4.0"
    assert len(made.datasheet.cross_architecture) == 6
    assert made.datasheet.metrics["distilled"]["accuracy"] == found["accuracy"]
    assert sorted(p.name for p in output.parent.iterdir()) == [
        "a.distilled.html", "a.distilled.md", "a.distilled.safetensors",
    ]  # fmt: skip
    again = ["learn", "distill", "--data", str(data), "--output", str(output), *FAST]
    for more in ([], ["--resume"]):
        assert main([*again, *more]) == 2
        assert "holds a finished run" in capsys.readouterr().err


def test_a_private_run_reports_epsilon_per_patient(data: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "p.distilled.safetensors"
    arrays = dict(np.load(data))
    arrays["train_labels"] = np.where(np.arange(60) == 7, -1, arrays["train_labels"][:, 0])
    np.savez(data, **arrays)  # a picture without a label is left out, and its patient's number with it
    found = run(
        capsys, "learn", "distill", "--data", data, "--output", output, "--images-per-class", 1, *FAST,
        "--epsilon", 8, "--patients", tmp_path / "patients.npz",
    )  # fmt: skip
    assert found["privacy"]["epsilon"] <= 8.0 and found["privacy"]["unit"] == "patient"
    made = DistilledSet.load(output)
    # Nothing in the file was computed from real training pictures but through the noise.
    assert set(made.datasheet.metrics) == {"distilled"} and made.datasheet.sources[0].sha256 == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--output", "x.pt"], 2, "must end in"),
        (["--output", "data.npz/x.safetensors"], 2, "choose another --output"),
        (["--images-per-class", "0"], 2, "images_per_class"),
        (["--method", "magic"], 2, "magic"),
        (["--method", "random", "--images-per-class", "21"], 3, "has 20 pictures"),
        (["--patients", "patients.npz"], 2, "--epsilon"),
        (["--dtype", "bf16"], 2, "dtype"),
        (["--data", "nothing.npz"], 4, "nothing.npz"),
    ],
)
def test_wrong_input_ends_with_its_code(
    data: Path, tmp_path: Path, capsys, monkeypatch, words: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["learn", "distill", "--data", str(data), "--output", "a.distilled.safetensors", *FAST, *words]
    assert main(given) == code
    assert said in capsys.readouterr().err


def test_bad_pictures_are_refused_by_name(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    good, labels = rng.random((9, 8, 8)), np.arange(9) % 3
    broken = good.copy()
    broken[4, 0, 0] = np.nan
    cases = {
        "nan": (broken, labels, "NaN"),
        "range": (good * 3, labels, "must lie in"),
        "multi": (good, np.ones((9, 14), dtype=np.int64), "multi-label"),
        "single": (good, labels * 0, "class"),
    }
    for name, (images, own, said) in cases.items():
        path = tmp_path / f"{name}.npz"
        np.savez(path, train_images=images, train_labels=own)
        code = main(
            ["learn", "distill", "--data", str(path), "--output", str(tmp_path / "a.distilled.safetensors")]
        )
        assert code == 3, name
        assert said in capsys.readouterr().err


def test_labels_that_are_not_counted_from_zero_keep_their_names(tmp_path: Path, capsys) -> None:
    data = make_pictures(count=30)
    np.savez(
        tmp_path / "d.npz",
        train_images=data.images[..., 0].numpy(),
        train_labels=data.labels.numpy() * 5 + 10,
    )
    output = tmp_path / "a.distilled.safetensors"
    run(capsys, "learn", "distill", "--data", tmp_path / "d.npz", "--output", output, *FAST)
    assert DistilledSet.load(output).datasheet.class_names == ("10", "15", "20")


def test_a_set_that_is_judged_on_what_it_was_made_from_says_so(data: Path, tmp_path: Path, capsys) -> None:
    arrays = dict(np.load(data))
    arrays["test_images"][:3] = arrays["train_images"][:3]
    arrays["train_labels"] = arrays["train_labels"].astype(int)
    arrays["train_labels"][2] = -1
    np.savez(tmp_path / "d.npz", **arrays)
    output = tmp_path / "a.distilled.safetensors"
    words = ["--data", tmp_path / "d.npz", "--output", output, *FAST, "--method", "random", "--soft-labels"]
    found = run(capsys, "learn", "distill", *words, "--expert-epochs", 1)
    # The third copy is of a picture without a label, which is not distilled.
    assert "2 test or validation pictures were trained on as well" in found["warnings"][-1]
    sheet = DistilledSet.load(output).datasheet
    assert found["warnings"] == list(sheet.warnings)
    # Beside soft labels stand random pictures with the same teacher's.
    assert {"random", "random_soft_labels"} <= set(sheet.metrics) and "runs" in found["random_soft_labels"]


def test_soft_labels_are_a_flag_that_may_say_false(data: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "a.distilled.safetensors"
    words = ["learn", "distill", "--data", data, "--output", output, *FAST, "--method", "rded", "--factor", 1]
    run(capsys, *words, "--images-per-class", 1, "--expert-epochs", 1, "--soft-labels", "False", "--no-score")
    assert DistilledSet.load(output).soft_labels is None
    assert main([*map(str, words), "--soft-labels", "perhaps"]) == 2
    assert "perhaps" in capsys.readouterr().err


def test_the_plan_carries_every_setting() -> None:
    request = DistillRequest(
        data=Path("x"), output=Path("y"), method="mtt", expert_epochs=1, flips=True, width=16
    )
    plan = plan_of(request, make_pictures())
    assert not plan.trajectory.balanced
    assert plan_of(replace(request, balanced_experts=True), make_pictures()).trajectory.balanced
    assert plan.trajectory.expert_steps == 1 and "flip" in plan.augmentations and plan.network.width == 16


def test_evaluating_the_file_reaches_the_reported_figures(data: Path, tmp_path: Path, capsys) -> None:
    """Recipe, network and pictures come from the file alone; the seeds of both verbs are the same."""
    output = tmp_path / "f.distilled.safetensors"
    words = ["--data", data, "--images-per-class", 1, *FAST[:-2], "--device", "cpu"]
    reported = run(capsys, "learn", "distill", *words, "--output", output)
    found = run(capsys, "learn", "evaluate", output, "--data", data, "--device", "cpu")
    for name in ("accuracy", "balanced_accuracy", "auc"):
        assert found[name] == pytest.approx(reported[name], abs=1e-6)
