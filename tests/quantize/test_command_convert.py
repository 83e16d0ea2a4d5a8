import json
from pathlib import Path

import pytest
import torch

from fewer.cli import main


def test_the_verb_converts_and_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    words = [
        "convert",
        str(tmp_path / "a.pth"),
        "--output",
        str(tmp_path / "out"),
        "--to",
        "safetensors",
        "--json",
    ]
    assert main(words) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert main([*words, "--trust-pickle"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["from"] == "pickle" and (tmp_path / "out" / "a.safetensors").exists()
    assert main(["convert", str(tmp_path / "none"), "--output", str(tmp_path / "x")]) == 4
