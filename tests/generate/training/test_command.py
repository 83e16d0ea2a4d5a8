"""Requests of the two verbs."""

from pathlib import Path

import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.core.progress import SilentProgress
from fewer.generate.training.command import (
    TrainLoraRequest,
    TrainSanaRequest,
    train_sana_command,
    training_of,
)


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
