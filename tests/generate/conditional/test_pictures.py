from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewer.core.errors import DataError, FileError
from fewer.generate.conditional.pictures import read_labelled


def test_folders_and_archives_say_the_same(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    labels = np.arange(12) % 2
    for split, rows in (("train", range(8)), ("test", range(8, 12))):
        for row in rows:
            folder = tmp_path / "d" / split / ("dog", "cat")[labels[row]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(folder / f"{row:02}.png")
    arrays = {"train_images": pixels[:8], "train_labels": labels[:8, None]}
    np.savez(tmp_path / "d.npz", **arrays, test_images=pixels[8:], test_labels=labels[8:])
    (one, held), (other, held_other) = read_labelled(tmp_path / "d", 6), read_labelled(tmp_path / "d.npz", 6)
    assert one.class_names == ("cat", "dog") and other.class_names == ("0", "1")
    assert len(one.labels) == 8 and len(held.labels) == len(held_other.labels) == 4
    for label in (0, 1):
        mine, theirs = one.images[one.labels == label], other.images[other.labels == 1 - label]
        assert torch.equal(mine, theirs)
    assert one.images.min() >= -1 and one.images.max() <= 1
    small, _ = read_labelled(tmp_path / "d.npz", 4, grey=True)
    assert small.images.shape == (8, 1, 4, 4)


def test_without_a_test_split_every_tenth_is_held_out(tmp_path: Path) -> None:
    images = np.zeros((20, 5, 5), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=np.arange(20) % 3)
    train, held = read_labelled(tmp_path / "d.npz", 5)
    assert (len(train.labels), len(held.labels)) == (18, 2) and train.images.shape[1] == 3


def test_a_folder_without_pictures_is_no_class_and_every_class_is_trained(tmp_path: Path) -> None:
    def write(folder: str, count: int) -> None:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (5, 7), (number, 0, 0)).save(tmp_path / folder / f"{number}.png")

    write("d/many", 9)
    write("d/one", 1)  # the tenth of all
    write("d/other", 12)
    (tmp_path / "d" / "notes").mkdir()
    (tmp_path / "d" / "notes" / "a.txt").write_text("no picture")
    train, held = read_labelled(tmp_path / "d", 5)
    assert train.class_names == ("many", "one", "other")
    assert train.labels.unique().tolist() == [0, 1, 2] and held.labels.tolist() == [2]

    for name in ("a", "b"):
        write(f"split/train/{name}", 2)
    write("split/test/c", 1)
    with pytest.raises(DataError, match="to train on of c"):
        read_labelled(tmp_path / "split", 5)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not there"):
        read_labelled(tmp_path / "nowhere", 8)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no pictures"):
        read_labelled(tmp_path / "empty", 8)
    images = np.zeros((20, 5, 5), dtype=np.uint8)
    for name, arrays, words in (
        ("one", {"train_images": images, "train_labels": np.zeros(20, int)}, "1 classes"),
        ("none", {"x": images}, "needs train_images"),
        ("floats", {"train_images": images / 1.0, "train_labels": np.arange(20)}, "uint8"),
        ("short", {"train_images": images, "train_labels": np.arange(19)}, "one label each"),
        ("flat", {"train_images": images[:, :0], "train_labels": np.arange(20) % 2}, "no pixels"),
        ("nan", {"train_images": images, "train_labels": np.append(np.arange(19) % 2, np.nan)}, "NaN"),
        ("same", {"train_images": images, "train_labels": np.arange(20) % 2, "class_names": ["a", "a"]},
         "two classes of one name"),
    ):  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(DataError, match=words):
            read_labelled(tmp_path / f"{name}.npz", 5)
