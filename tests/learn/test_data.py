from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.learn.data import ImageSplits, in_channels, load_images, make_labelled_images, pick_labels

DIGITS = Path("data/mnist10k/mnist10k.npz")


def draw(path: Path, shade: int | tuple[int, int, int], side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (shade, shade, shade) if isinstance(shade, int) else shade
    Image.new("RGB", (side, side), colour).save(path)


def test_medmnist_file_is_read_as_it_is() -> None:
    splits = load_images(DIGITS)
    assert splits.train.images.shape == (8000, 28, 28, 1)
    assert splits.test is not None
    assert len(splits.test) == 2000
    assert splits.train.class_names == tuple("0123456789")
    with np.load(DIGITS) as raw:
        assert (splits.train.images[..., 0].numpy() == raw["train_images"]).all()
        assert (splits.train.labels.numpy() == raw["train_labels"][:, 0]).all()


def test_folder_and_list_and_npz_agree(tmp_path: Path) -> None:
    rows = ["file,label,split"]
    images, labels = [], []
    for split, number in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(number):
                draw(tmp_path / split / name / f"{i}.png", 40 * label + i + 1)
                rows.append(f"{split}/{name}/{i}.png,{name},{split}")
                if split == "train":
                    images.append(np.full((8, 8), 40 * label + i + 1, np.uint8))
                    labels.append([label])
    draw(tmp_path / "train" / "unlabeled" / "u.png", 200)
    rows.append("train/unlabeled/u.png,,train")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=labels, class_names=["cat", "dog"])
    folder, listed, arrays = (load_images(tmp_path / name) for name in ("", "list.csv", "set.npz"))
    assert folder.train.class_names == listed.train.class_names == arrays.train.class_names == ("cat", "dog")
    assert folder.train.channels == 1
    assert torch.equal(folder.train.images, listed.train.images)
    assert folder.train.labels.tolist() == listed.train.labels.tolist() == [0, 0, 0, 1, 1, 1, -1]
    assert torch.equal(arrays.train.images, folder.train.labelled().images)
    assert folder.test is not None
    assert len(folder.test) == 4
    assert folder.train.counts().tolist() == [3, 3]


def test_labels_that_are_not_0_to_k_keep_their_number_as_name(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "odd.npz", train_images=np.zeros((3, 5, 7), np.uint8), train_labels=np.array([7, 3, 7])
    )
    train = load_images(tmp_path / "odd.npz").train
    assert train.class_names == ("3", "7")
    assert train.labels.tolist() == [1, 0, 1]
    assert train.size == (5, 7)


def test_resizing_and_colour(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "0.png", (250, 0, 0), side=16)
    draw(tmp_path / "b" / "0.png", (0, 250, 0), side=9)
    with pytest.raises(DataError, match="give --image-size"):
        load_images(tmp_path)
    train = load_images(tmp_path, size=12).train
    assert train.images.shape == (2, 12, 12, 3)
    assert train.images[0, 3, 3].tolist() == [250, 0, 0]


def test_colours_become_grey_as_in_pillow_and_grey_becomes_colour() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    grey = in_channels(torch.from_numpy(pixels), 1)
    for one, picture in zip(grey, pixels, strict=True):
        assert np.array_equal(one[..., 0].numpy(), np.asarray(Image.fromarray(picture).convert("L")))
    again = in_channels(grey, 3)
    assert again.shape == pixels.shape and torch.equal(in_channels(again, 1), grey)


def test_mean_and_deviation_are_those_of_numpy() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 3), dtype=torch.uint8)
    mean, deviation = make_labelled_images(images, [0, 1, 0, 1, 0]).mean_and_deviation()
    pixels = images.numpy().reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(deviation, pixels.std(0), atol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4)), [0, 2.5], "whole numbers"),
        (np.zeros((2, 4, 4)), [[0, 1], [1, 0]], "multi-label"),
        (np.zeros((2, 4, 4)), [0], "2 pictures but 1 labels"),
        (np.zeros((2, 4, 4)), [0, 0], "at least 2"),
        (np.zeros((2, 4, 4)), [0, -3], "row 1 has label -3"),
        (np.full((2, 4, 4), np.nan), [0, 1], "picture 0 holds NaN"),
        (np.full((2, 4, 4), 7.0), [0, 1], r"\[0, 1\]"),
        (np.full((2, 4, 4), 700), [0, 1], "0 .. 255, found 700 .. 700"),
        (np.full((2, 4, 4), 700, np.uint16), [0, 1], "0 .. 255"),
        (np.zeros((2, 4, 4), complex), [0, 1], "complex128"),
        (np.array([["a"] * 4] * 4)[None].repeat(2, 0), [0, 1], "whole numbers or floats"),
        (np.full((2, 4, 4), 2**63, np.uint64), [0, 1], "too large"),
        (np.zeros((2, 4, 4)), [0, np.nan], "whole numbers"),
        (np.zeros((2, 4, 4)), [0, np.inf], "whole numbers"),
        (np.zeros((2, 4, 4, 2)), [0, 1], "shape"),
        (np.zeros((2, 0, 4)), [0, 1], "shape"),
    ],
)
def test_what_cannot_be_used_is_refused(images: np.ndarray, labels: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_labelled_images(images, np.array(labels))


@pytest.mark.parametrize(
    "kind", ["uint16", "int64", ">i4", "float16", "float32", ">f8", "longdouble", "bool"]
)
def test_every_number_format_gives_the_same_pictures(kind: str) -> None:
    levels = np.array([[0, 255], [255, 0]], np.uint8)[None].repeat(2, 0)
    scale = 1 if np.dtype(kind).kind in "ui" else 255
    given = (levels / scale).astype(kind)
    assert torch.equal(make_labelled_images(given, [0, 1]).images[..., 0], torch.from_numpy(levels))


def test_splits_of_other_sizes_or_channels_are_refused_before_any_work(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 6, 6), np.uint8), np.arange(4) % 2
    for other in (images[:, :5], images[..., None].repeat(3, 3)):
        np.savez(
            tmp_path / "d.npz",
            train_images=images,
            train_labels=labels,
            test_images=other,
            test_labels=labels,
        )
        with pytest.raises(DataError, match="the test pictures are"):
            load_images(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=np.array([0, 1, np.nan, 1]))
    with pytest.raises(DataError, match="NaN, infinity or fractions"):
        load_images(tmp_path / "d.npz")


def test_label_outside_the_named_classes_names_its_row() -> None:
    with pytest.raises(DataError, match="row 2 has label 5"):
        make_labelled_images(np.zeros((3, 4, 4)), [0, 1, 5], ["a", "b"])


def test_files_that_are_missing_or_strange(tmp_path: Path) -> None:
    with pytest.raises(FileError) as missing:
        load_images(tmp_path / "nothing.npz")
    assert missing.value.missing
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ConfigError, match="npz"):
        load_images(tmp_path / "x.txt")
    with pytest.raises(DataError, match="no pictures"):
        load_images(tmp_path)
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match="no train_images"):
        load_images(tmp_path / "other.npz")


def test_picked_labels_are_equal_per_class_seeded_and_sorted() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, -1] * 5)
    chosen = pick_labels(labels, 4, 3, seed=1)
    assert torch.bincount(labels[chosen]).tolist() == [4, 4, 4]
    assert torch.equal(chosen, chosen.sort().values)
    assert torch.equal(chosen, pick_labels(labels, 4, 3, seed=1))
    assert not torch.equal(chosen, pick_labels(labels, 4, 3, seed=2))
    with pytest.raises(DataError, match="class 3 has 0"):
        pick_labels(labels, 1, 4, seed=0)
    with pytest.raises(DataError, match="class 'rare' has 0"):
        pick_labels(labels, 1, 4, 0, ("a", "b", "c", "rare"))


def test_pictures_know_the_file_they_came_from(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/p7/2.png", "train/unlabelled/3.png", "test/a/4.png"):
        draw(tmp_path / "set" / name, 9)
    splits = load_images(tmp_path / "set", size=4)
    assert splits.train.files == ("train/a/1.png", "train/b/p7/2.png", "train/unlabelled/3.png")
    assert splits.train.labelled().select([1]).files == ("train/b/p7/2.png",)
    (tmp_path / "set" / "list.csv").write_text("file,label\ntest/a/4.png,x\ntrain/a/1.png,y\n")
    assert load_images(tmp_path / "set" / "list.csv").train.files == ("test/a/4.png", "train/a/1.png")
    assert load_images(DIGITS).train.files == ()


@pytest.mark.parametrize("suffix", ["npz", "NPZ"])
def test_a_split_without_labels_is_not_the_one_that_is_judged_on(tmp_path: Path, suffix: str) -> None:
    pictures = np.zeros((4, 5, 5), np.uint8)
    parts = {f"{name}_images": pictures for name in ("train", "val", "test")}
    np.savez(tmp_path / "a.npz", **parts, train_labels=[0, 1, 0, 1], val_labels=[1, 1, 0, 0])
    (tmp_path / "a.npz").rename(tmp_path / f"b.{suffix}")
    splits = load_images(tmp_path / f"b.{suffix}")
    assert splits.evaluation().labels.tolist() == [1, 1, 0, 0]
    assert ImageSplits(splits.train, test=splits.test).held_out() is None


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (np.array([-1, -1, -1]), None, "no picture has a label"),
        (np.array(["a", "b", "nan"]), None, "the label 'nan' is what programs write"),
        (np.array(["a", "b", "c"]), ["a", "b"], "label 'c' is none of class_names: a, b"),
        (np.array([0.0, 1.0, 1e300]), None, "too large"),
        (np.array([0.0, 1.0, np.inf]), None, "infinity"),
        (np.zeros(3, dtype=[("a", int)]), None, "whole numbers or names"),
        (np.array([0, 1, 1]), ["lung", "lung"], "two classes are named 'lung'"),
    ],
)
def test_labels_and_names_that_say_nothing_are_refused(
    tmp_path: Path, labels: np.ndarray, names: list[str] | None, message: str
) -> None:
    given = {} if names is None else {"class_names": np.array(names)}
    np.savez(tmp_path / "odd.npz", train_images=np.zeros((3, 5, 5), np.uint8), train_labels=labels, **given)
    with pytest.raises(DataError, match=message):
        load_images(tmp_path / "odd.npz")
