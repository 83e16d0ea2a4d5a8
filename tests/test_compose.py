"""Rooms together, through the command line: several devices and 4 bits change how, not what."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewer.cli import main
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
