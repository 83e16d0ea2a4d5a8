"""Rooms together, through the command line: several devices and 4 bits change how, not what."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn

from fewer import compose
from fewer.cli import _print_result, main
from fewer.core.errors import ConfigError
from fewer.core.progress import SilentProgress
from fewer.generate.command import GenerateCommand
from tests.generate.conftest import *  # noqa: F403 - the tiny pipeline folder


def draw(
    folder: object, output: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[np.ndarray, dict]:
    words = ["generate", "a cat", "--model", str(folder), "--device", "cpu", "--steps", "2", "--seed", "3"]
    code = main([*words, "--output", str(output), "--json", *more])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    with Image.open(output) as picture:
        return np.asarray(picture, dtype=np.int16), json.loads(captured.out)


def test_two_devices_draw_the_picture_of_one(
    pipeline_folder: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--width", "64", "--height", "128", "--guidance", "4.5")
    one, _ = draw(pipeline_folder, tmp_path / "one.png", capsys, *size)
    two, facts = draw(pipeline_folder, tmp_path / "two.png", capsys, *size, "--devices", "2")
    assert facts["devices"] == 2 and "predicted" in facts["plan"]
    assert np.abs(one - two).max() <= 1


def test_a_contradiction_is_refused_before_processes_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fewer.parallel.launch.run_on_devices", lambda *_, **__: pytest.fail("started"))
    assert main(["generate", "a cat", "--devices", "3", "--split-guidance", "split", "--device", "cpu"]) == 2
    assert "even number of devices, not 3" in capsys.readouterr().err


@pytest.mark.parametrize(("ranks", "devices"), [(4, 2), (2, 3), (1, 2)])
def test_torchrun_and_the_number_of_devices_must_agree(
    ranks: int, devices: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert main(["generate", "a cat", "--devices", str(devices), "--device", "cpu"]) == 2
    assert f"torchrun started {ranks} ranks, but --devices is {devices}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "mode", "guidance"),
    [({}, "sync", "batched"), ({"parallel": "displaced", "split_guidance": "split"}, "displaced", "split")],
)
def test_a_condition_aware_network_is_spread_as_asked(asked: dict, mode: str, guidance: str) -> None:
    """There is nothing to measure for it; what cannot be (split guidance) is refused by `parallelize`."""
    transformer = SimpleNamespace(params=SimpleNamespace(guidance_embeds=False))
    pipe = SimpleNamespace(transformer=transformer, complete=lambda single: single)
    request = GenerateCommand(prompt=("a cat",), steps=20, **asked)
    plan, why = compose._plan(pipe, request, SimpleNamespace(size=2))  # pyright: ignore[reportArgumentType]
    assert (plan.mode, plan.guidance) == (mode, guidance) and why == plan.explain()


def test_of_torchruns_processes_the_first_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for rank, said in (("1", ""), ("0", '{"a": 1}\n')):
        monkeypatch.setenv("RANK", rank)
        _print_result({"a": 1}, as_json=True)
        assert capsys.readouterr().out == said


def test_four_bits_are_calibrated_with_the_full_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few-step edition replaces layers while it draws; calibration must see those that stay."""
    asked = []
    pipe = SimpleNamespace(transformer=nn.Linear(2, 2), iterate=lambda sample: asked.append(sample) or [])
    monkeypatch.setattr("fewer.quantize.quantize", lambda *_, calibrate, **__: calibrate(), raising=False)
    request = GenerateCommand(prompt=("a cat",), steps=2, precision="svdquant")
    compose._shrink(pipe, request, SilentProgress())  # pyright: ignore[reportArgumentType]
    assert [sample.edition for sample in asked] == ["full"]


@pytest.mark.parametrize("form", ["int4", "h8"])
def test_what_quantize_writes_draws_by_itself(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    four = tmp_path / "four"
    words = ["quantize", str(pipeline_folder), "--output", str(four), "--format", form, "--rank", "4"]
    words += ["--preset", "fast", "--device", "cpu", "--prompts", "2", "--report", "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["calibration_prompts"] == 2 and facts["mean_error"] > 0
    assert (four / "report.html").read_text().count("data:image/png;base64,") == 4
    size = ("--width", "64", "--height", "64")
    exact, _ = draw(pipeline_folder, tmp_path / "sixteen.png", capsys, *size)
    found, facts = draw(four, tmp_path / "four.png", capsys, *size)
    again, _ = draw(four, tmp_path / "again.png", capsys, *size, "--precision", "svdquant")
    assert facts["model"] == str(four) and np.array_equal(found, again)
    assert 0 < np.abs(found - exact).mean() < 25


def test_a_style_on_4_bits_and_a_pipeline_that_is_gone_are_said(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four = tmp_path / "four"
    assert (
        main(["quantize", str(pipeline_folder), "--output", str(four), "--rank", "4", "--no-calibrate"]) == 0
    )
    with pytest.raises(ConfigError, match="style needs 16-bit weights"):
        compose.open_pipeline(str(four), device="cpu", dtype="fp32", style="ink.safetensors")
    (four / "pipeline.json").write_text('{"pipeline": "../nowhere"}')
    assert main(["generate", "a cat", "--model", str(four), "--output", str(tmp_path / "x.png")]) == 4
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["int4", "h8"])
def test_a_class_conditional_network_in_4_bits_draws_its_classes_through_its_autoencoder(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    from fewer.generate.conditional import ClassConditionalParams, ConditionPlan
    from fewer.generate.conditional.build import build
    from fewer.generate.conditional.formats import save_folder

    folder, four = tmp_path / "classes", tmp_path / "four"
    params = ClassConditionalParams(size=8, channels=4, out_channels=4, width=64, depth=1, heads=2, classes=2)
    model = build(params, ConditionPlan(rank=8), seed=0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.05)
    save_folder(model, folder, ("zero", "one"))
    shutil.copytree(pipeline_folder / "vae", folder / "autoencoder")
    words = ["quantize", str(folder), "--output", str(four), "--format", form, "--rank", "4", "--report"]
    assert main([*words, "--preset", "fast", "--prompts", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibrated_on"] == "its 2 classes"

    def picture(source: Path, *more: str) -> np.ndarray:
        path = tmp_path / "picture.png"
        told = ["generate", "--model", str(source), "--class-name", "one", "--steps", "2", "--seed", "3"]
        assert main([*told, "--output", str(path), "--json", *more]) == 0, capsys.readouterr().err
        with Image.open(path) as found:
            return np.asarray(found, dtype=np.int16)

    exact, found = picture(folder), picture(four)
    assert exact.shape == found.shape and exact.shape[0] > 8, "decoded"
    assert 0 < np.abs(exact - found).mean() < 25
    assert np.abs(found - picture(four, "--dtype", "bf16")).mean() < 25
    assert main(["generate", "--model", str(four), "--class-name", "two"]) == 2
    assert "zero, one" in capsys.readouterr().err
    (folder / "autoencoder").rename(tmp_path / "gone")
    assert main(["generate", "--model", str(four), "--class-name", "one"]) == 4
    assert "classes" in capsys.readouterr().err
