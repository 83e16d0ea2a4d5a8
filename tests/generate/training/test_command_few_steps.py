"""What `fewer train few-steps` takes its prompts from."""

from pathlib import Path

import pytest

from fewer.core.errors import ConfigError, DataError
from fewer.core.progress import SilentProgress
from fewer.generate.training.command_few_steps import (
    TrainFewStepsRequest,
    preset_prompts,
    prompts_of,
    train_few_steps_command,
)


def test_a_file_gives_its_lines(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\n  two dogs \n")
    request = TrainFewStepsRequest(output=tmp_path, prompts=tmp_path / "prompts.txt")
    assert prompts_of(request) == ["a cat", "two dogs"]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no prompt"):
        prompts_of(TrainFewStepsRequest(output=tmp_path, prompts=tmp_path / "prompts.txt"))


def test_a_preset_gives_captions_and_always_the_same() -> None:
    found = preset_prompts("emoji-cpu", 20, seed=1)
    assert found == preset_prompts("emoji-cpu", 20, seed=1)
    assert len(found) == 20
    assert found != preset_prompts("emoji-cpu", 20, seed=2)


def test_a_preset_with_open_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="--prompts"):
        preset_prompts("emoji-test", 5, seed=0)


def test_prompts_or_a_preset_and_not_both(tmp_path: Path) -> None:
    for given in ({}, {"preset": "emoji-cpu", "prompts": tmp_path / "a.txt"}):
        with pytest.raises(ConfigError, match="either"):
            train_few_steps_command(TrainFewStepsRequest(output=tmp_path, **given), SilentProgress())
