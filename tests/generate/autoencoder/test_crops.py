"""Crops: functions of the generator alone, right range and size, every kind of folder and picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewer.core.errors import DataError, FileError
from fewer.generate.autoencoder.crops import PictureFolder, split_pictures, to_picture, to_tensor


def make(folder: Path, names: list[str], size: tuple[int, int] = (40, 30)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        noise = np.random.default_rng(index).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)


def test_same_generator_same_crops(tmp_path: Path) -> None:
    make(tmp_path, [f"{i}.png" for i in range(5)])
    one, other = (
        PictureFolder(tmp_path).crops(7, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1)
    )
    assert torch.equal(one, other) and one.shape == (7, 3, 16, 16)
    assert one.min() >= -1 and one.max() <= 1 and one.std() > 0.2
    assert not torch.equal(one, PictureFolder(tmp_path).crops(7, 16, torch.Generator().manual_seed(2)))


def test_small_pictures_are_enlarged_and_grey_is_one_channel(tmp_path: Path) -> None:
    make(tmp_path, ["a.png", "b.png"], size=(5, 3))
    assert PictureFolder(tmp_path, channels=1).crops(3, 32, torch.Generator()).shape == (3, 1, 32, 32)


def test_splits(tmp_path: Path) -> None:
    make(tmp_path / "a" / "train", ["1.png", "2.png"])
    make(tmp_path / "a" / "test", ["3.png"])
    train, held_out = split_pictures(tmp_path / "a")
    assert [p.name for p in train] == ["1.png", "2.png"] and [p.name for p in held_out] == ["3.png"]

    make(tmp_path / "b", ["1.png", "2.png", "3.png"])
    (tmp_path / "b" / "index.csv").write_text("file,split\n1.png,train\n2.png,test\n3.png,train\n")
    train, held_out = split_pictures(tmp_path / "b")
    assert [p.name for p in held_out] == ["2.png"] and len(train) == 2

    make(tmp_path / "c", [f"{i}.png" for i in range(40)], size=(2, 2))
    train, held_out = split_pictures(tmp_path / "c")
    assert 1 <= len(held_out) <= 10 and len(train) + len(held_out) == 40
    make(tmp_path / "d", ["only.png"])
    assert [len(part) for part in split_pictures(tmp_path / "d")] == [1, 0]


def test_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match="no PNG") as caught:
        PictureFolder(tmp_path)
    assert caught.value.exit_code == 3
    with pytest.raises(FileError, match="no folder") as caught:
        PictureFolder(tmp_path / "nowhere")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_and_tensors_round_trip(mode: str) -> None:
    shape = (7, 5, 3) if mode == "RGB" else (7, 5)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    assert np.array_equal(np.asarray(to_picture(to_tensor(picture))), np.asarray(picture))
