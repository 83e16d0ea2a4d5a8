from pathlib import Path

import pytest

from fewer.cli import main
from fewer.generate.conditional.formats import save_folder
from tests.generate.conditional.conftest import upgraded


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--class-name", "z"], 2, "class 'z' is not known; allowed: a, b, c, d, e"),
        (["--class-name", "5"], 2, "class '5' is not known"),
        (["a cat"], 2, "draws classes, not prompts; give --class-name, one of: a, b"),
        (["a cat", "--class-name", "a"], 2, "does not go with prompt"),
        (["--class-name", "a", "--devices", "2"], 2, "does not go with devices"),
        (["--class-name", "a", "--sampler", "flow-euler"], 2, "does not go with sampler"),
        (["--class-name", "a", "--edition", "full", "--autoencoder", "x"], 2, "with edition, autoencoder"),
        (["--class-name", "a", "--from", "x.png"], 2, "does not go with from"),
        (["--class-name", "a", "--output", "x.jpg"], 2, "must be a .png"),
        (["--class-name", "a", "--model", "nowhere"], 4, "is no folder"),
    ],
)
def test_refusals(
    words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_folder(upgraded("cat tokens"), tmp_path, ("a", "b", "c", "d", "e"))
    assert main(["generate", "--model", str(tmp_path), "--device", "cpu", *words]) == code
    assert said in capsys.readouterr().err
