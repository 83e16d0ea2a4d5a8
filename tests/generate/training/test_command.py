"""Requests of the two verbs."""

from dataclasses import replace
from pathlib import Path

import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.core.progress import SilentProgress
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.sprites import save_sprites
from fewer.generate.training.command import (
    TrainLoraRequest,
    TrainSanaRequest,
    train_sana_command,
    training_of,
)
from tests.generate.scenes.conftest import made_up_sheet


def test_data_and_preset_exclude_each_other(tmp_path: Path) -> None:
    for request in (
        TrainSanaRequest(output=tmp_path),
        TrainSanaRequest(output=tmp_path, data=tmp_path, preset="emoji"),
    ):
        with pytest.raises(ConfigError, match="--preset"):
            train_sana_command(request, SilentProgress())


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"batch": -1}, {"learning_rate": 2.0}, {"width": 100}, {"typo": 1}]
)
def test_bad_values_are_refused_by_name(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        validate(TrainSanaRequest, {"output": tmp_path, **bad})


def test_what_is_given_wins_over_the_models_own(tmp_path: Path) -> None:
    request = TrainLoraRequest(data=tmp_path, output=tmp_path, steps=7, optimizer="came")
    training = training_of(request, shift=3.0)
    assert (training.steps, training.shift, training.optimizer, training.ema_decay) == (7, 3.0, "came", None)
    assert training_of(TrainSanaRequest(output=tmp_path, shift=1.5), shift=3.0).shift == 1.5


def test_a_start_goes_with_a_preset_alone(tmp_path: Path) -> None:
    request = TrainSanaRequest(output=tmp_path, data=tmp_path, start="default")
    with pytest.raises(ConfigError, match="--model"):
        train_sana_command(request, SilentProgress())


def test_the_preset_runs_from_nothing_and_from_a_start(tmp_path: Path, letters, monkeypatch) -> None:
    small = preset("emoji-test")
    small = replace(small, transformer=replace(small.transformer, caption_channels=letters.channels))
    monkeypatch.setattr("fewer.generate.scenes.presets.preset", lambda name: small)
    monkeypatch.setattr("fewer.generate.text.smollm2.smollm2_folder", lambda: tmp_path)
    monkeypatch.setattr("fewer.generate.text.prompt.PromptEncoder.load", lambda *given, **named: letters)
    monkeypatch.setattr("fewer.generate.model_folder.smollm2_folder", lambda cache: tmp_path)
    reports = []
    for name, start in (("first", None), ("second", str(tmp_path / "first" / "model"))):
        save_sprites(made_up_sheet(), tmp_path / name / "sprites.safetensors")
        request = TrainSanaRequest(output=tmp_path / name, preset="emoji-test", start=start, device="cpu")
        reports.append(train_sana_command(request, SilentProgress()))
    assert [report["steps"] for report in reports] == [4, 4]
    assert reports[1]["psnr"] == pytest.approx(reports[0]["psnr"], abs=0.1)  # stored in a byte a weight
