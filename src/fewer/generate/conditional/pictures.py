"""Labelled pictures to learn classes from: `split/class/*.png`, `class/*.png`, or a MedMNIST-style `.npz`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fewer.core.errors import DataError, FileError
from fewer.core.files import read_arrays, read_image

_TRAIN, _TEST = ("train",), ("test", "val", "validation")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, slots=True)
class LabelledPictures:
    """Pictures of one size in [-1, 1], and the number of each one's class."""

    images: Float[Tensor, "count channels side side"]
    labels: Int64[Tensor, " count"]
    class_names: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 over pictures, labels and names, as 64 hexadecimal digits."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def read_labelled(path: Path, size: int, grey: bool = False) -> tuple[LabelledPictures, LabelledPictures]:
    """(training, held-out) pictures, resized to `size`; without a test split every tenth is held out.

    Raises `FileError` if nothing is there or a file is damaged, `DataError` for too few classes or pictures.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path.name!r} is not there; --data takes a folder or an .npz", missing=True)
    found = _folder(path, size, grey) if path.is_dir() else _archive(path, size, grey)
    images, labels, held_out, names = found
    if len(names) < 2 or len(labels) < 2:
        raise DataError(f"{path.name!r} has {len(names)} classes and {len(labels)} pictures; 2 are needed")
    if not held_out.any():
        held_out = _every_tenth(labels)
    if held_out.all() or not held_out.any():
        raise DataError(f"{path.name!r} has no pictures to train on, or none to hold out; 10 are enough")
    seen = set(labels[~held_out].tolist())
    if unseen := [name for number, name in enumerate(names) if number not in seen]:
        raise DataError(
            f"{path.name!r} has no pictures to train on of {', '.join(unseen)[:200]}; "
            "add some, or leave that class out"
        )
    return (
        LabelledPictures(images[~held_out], labels[~held_out], names),
        LabelledPictures(images[held_out], labels[held_out], names),
    )


def _every_tenth(labels: Int64[Tensor, " count"]) -> Bool[Tensor, " count"]:
    """Which pictures to hold out; never all of a class, however few it has."""
    held_out = torch.arange(len(labels)) % 10 == 9
    return held_out & torch.isin(labels, labels[~held_out])


def _folder(root: Path, size: int, grey: bool) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    splits = [root / name for name in (*_TRAIN, *_TEST) if (root / name).is_dir()] or [root]
    names = sorted({entry.name for split in splits for entry in _folders(split) if _pictures(entry)})
    images, labels, held_out = [], [], []
    for split in splits:
        for number, name in enumerate(names):
            for file in _pictures(split / name):
                picture = read_image(file).convert("L" if grey else "RGB")
                picture = picture if picture.size == (size, size) else picture.resize((size, size))
                images.append(_channels_first(np.asarray(picture)))
                labels.append(number)
                held_out.append(split.name in _TEST and split != root)
    if not images:
        raise DataError(f"{root.name!r} holds no pictures; needed: split/class/*.png or class/*.png")
    return torch.stack(images), torch.tensor(labels), torch.tensor(held_out), tuple(names)


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    """Sorted; none of a folder that is not there."""
    return sorted(f for f in folder.glob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())


def _channels_first(pixels: np.ndarray) -> Tensor:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def _archive(path: Path, size: int, grey: bool) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    arrays = read_arrays(path)
    parts = [name for name in (*_TRAIN, "test", "val") if f"{name}_images" in arrays]
    if not parts or any(f"{name}_labels" not in arrays for name in parts):
        raise DataError(f"{path.name!r} needs train_images and train_labels; it holds {sorted(arrays)[:8]}")
    images, labels, held_out = [], [], []
    for part in parts:
        pixels, numbers = arrays[f"{part}_images"], arrays[f"{part}_labels"].reshape(-1)
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or len(pixels) != len(numbers):
            raise DataError(f"{path.name!r}: {part}_images must be uint8 (n, h, w[, c]), one label each")
        if min(pixels.shape[1:]) == 0:
            raise DataError(f"{path.name!r}: {part}_images of shape {pixels.shape} have no pixels")
        if numbers.dtype.kind == "f" and not (np.isfinite(numbers) & (numbers % 1 == 0)).all():
            raise DataError(
                f"{path.name!r}: {part}_labels hold fractions or NaN; give whole numbers or names"
            )
        images.append(_fitted(torch.from_numpy(pixels).permute(0, 3, 1, 2), size, grey))
        labels.append(numbers)
        held_out += [part != "train"] * len(numbers)
    every = np.concatenate(labels)
    values = np.unique(every)
    given = arrays.get("class_names")
    names = [str(name) for name in given] if given is not None else [str(value) for value in values.tolist()]
    if len(set(names)) < len(names):
        raise DataError(f"{path.name!r} has two classes of one name among {', '.join(names)[:200]}")
    if given is not None:
        values = np.arange(len(names))
        if not np.isin(every, values).all():
            raise DataError(f"{path.name!r} has labels outside its {len(names)} class names")
    numbers = torch.from_numpy(np.searchsorted(values, every)).long()
    return torch.cat(images), numbers, torch.tensor(held_out), tuple(names)


def _fitted(pixels: Tensor, size: int, grey: bool) -> Tensor:
    wanted = 1 if grey else 3
    images = pixels.float() / 127.5 - 1
    if images.shape[1] != wanted:
        images = images.mean(1, keepdim=True).expand(-1, wanted, -1, -1)
    if tuple(images.shape[2:]) != (size, size):
        images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return images.contiguous()
