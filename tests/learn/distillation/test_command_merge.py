import json
from pathlib import Path

import pytest

from fewer.cli import main
from fewer.learn.data import load_images
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.loop import distill
from tests.learn.distillation.conftest import make_pictures, tiny_plan


@pytest.fixture
def sites(tmp_path: Path) -> list[str]:
    files = [str(tmp_path / f"{k}.distilled.safetensors") for k in range(2)]
    for k, file in enumerate(files):
        distill(make_pictures(seed=k), plan=tiny_plan("random")).save(file)
    return files


def test_two_sites_become_one_file(sites: list[str], tmp_path: Path, capsys) -> None:
    output = tmp_path / "both.distilled.safetensors"
    assert main(["learn", "merge", *sites, "--output", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sources"] == 2
    assert len(DistilledSet.load(output)) == 12
    assert (tmp_path / "both.distilled.html").exists()
    assert main(["learn", "merge", sites[0], "--output", str(output)]) == 2
    assert main(["learn", "merge", *sites, "--output", "x.npz"]) == 2
    assert main(["learn", "merge", sites[0], "missing.safetensors", "--output", str(output)]) == 4


@pytest.mark.parametrize("name", ["a.npz", "a.html", "a.md", "folder"])
def test_every_export_is_written(sites: list[str], tmp_path: Path, name: str) -> None:
    target = tmp_path / "export" / name
    assert main(["learn", "export", sites[0], "--output", str(target)]) == 0
    assert target.exists()
    if name in ("a.npz", "folder"):
        assert len(load_images(target).train) == 6


def test_an_unknown_export_is_refused(sites: list[str], capsys) -> None:
    assert main(["learn", "export", sites[0], "--output", "a.docx"]) == 2
    assert ".npz" in capsys.readouterr().err
