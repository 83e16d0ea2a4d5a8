import json
from pathlib import Path

import pytest

from fewer.cli import main
from tests.learn.distillation.test_command_indicator import data


@pytest.mark.parametrize("kind", ["small", "great"])
def test_both_ways_are_scored(kind: str, tmp_path: Path, capsys) -> None:
    sets = [data(tmp_path, f"s{k}", k) for k in range(2)]
    code = main(
        [
            "learn",
            "variation",
            "--data",
            *sets,
            "--kind",
            kind,
            "--image-size",
            "8",
            "--width",
            "8",
            "--iterations",
            "2",
            "--epochs",
            "5",
            "--networks",
            "1",
            "--images-per-class",
            "2",
            "--json",
        ]
    )
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == kind and set(found["single"]) == {"s0", "s1"}
    assert 0 <= found["distilled_union"]["balanced_accuracy"] <= 1


def test_one_set_is_no_mixture(tmp_path: Path, capsys) -> None:
    assert main(["learn", "variation", "--data", data(tmp_path, "s", 0)]) == 2
    assert "data" in capsys.readouterr().err
