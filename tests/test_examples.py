"""Every example runs from a process that has imported nothing but torch, and ends well."""

import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.fresh import ended_well, fresh_processes

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(example: Path, folder: Path, said: Path) -> None:
    """What `python example` does in this folder; its words go into a file."""
    with said.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ |= {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    os.chdir(folder)
    sys.argv = [str(example)]
    sys.path = [str(example.parent), *(place for place in sys.path if Path(place).resolve() != ROOT)]
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    (tmp_path / "here").mkdir()
    process = fresh_processes().Process(target=run, args=(path, tmp_path / "here", said))
    process.start()
    assert ended_well(process, 240), said.read_text()[-3000:]
    assert len(path.read_text().splitlines()) <= 60
