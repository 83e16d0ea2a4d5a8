from pathlib import Path

import pytest
from torch import nn

from fewer.serve.shelf import Shelf, held_bytes


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Three folders; loading is replaced, because the shelf is about which models stay."""
    from fewer.generate.pipeline import TextToImage

    class Loaded:
        def __init__(self, folder: str) -> None:
            self.folder = folder
            self.transformer, self.autoencoder = nn.Linear(250, 1, bias=False), nn.Identity()
            self.encoder = type("Encoder", (), {"model": nn.Identity()})()

        def accelerate(self) -> "Loaded":
            return self

    loads: list[str] = []

    def load(folder: str, **options: object) -> Loaded:
        loads.append(Path(folder).name)
        return Loaded(folder)

    monkeypatch.setattr(TextToImage, "load", load)
    made = {}
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(bytes(1000))
        made[name] = str(tmp_path / name)
    return made | {"loads": loads}  # pyright: ignore


def test_models_stay_until_the_budget_is_full_and_the_oldest_leaves_first(folders: dict) -> None:
    loads = folders.pop("loads")
    shelf = Shelf(folders, "cpu", "fp32", memory=2300)
    first = shelf.pipeline("one")
    assert held_bytes(first.transformer, first.autoencoder) == 1000
    shelf.pipeline("two")
    assert shelf.pipeline("one") is first, "loaded once"
    assert shelf.names() == ["two", "one"] and loads == ["one", "two"]
    shelf.pipeline("three")
    assert shelf.names() == ["one", "three"], "two was used longest ago"
    shelf.pipeline("two")
    assert shelf.names() == ["three", "two"] and loads == ["one", "two", "three", "two"]


def test_one_model_is_held_whatever_the_budget(folders: dict) -> None:
    folders.pop("loads")
    shelf = Shelf(folders, "cpu", "fp32", memory=10)
    shelf.pipeline("one"), shelf.pipeline("two")
    assert shelf.names() == ["two"]
