"""Labelled pictures: how they are held, and how they are read from what people have.

`load_images(path)` answers with the splits found in

- a MedMNIST-style `.npz` (`train_images`, `train_labels`, `val_…`, `test_…`, optional `class_names`),
- a folder `split/class/*.png`, or `class/*.png` (then everything is the training split); a folder named
  `unlabelled` or `unlabeled` beside the classes holds pictures without a label,
- a `.csv` list with the columns `file,label` and optionally `split` (an empty label: unlabelled).

Every fault in them ends in `DataError` or `FileError` with the place of the fault.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.files import inside, read_arrays, read_image

UNLABELLED = -1
SPLITS = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "valid": "validation",
    "test": "test",
}
_UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Pictures of one size with the number of their class; `UNLABELLED` (-1) where it is not known."""

    images: UInt8[Tensor, "n height width channels"]
    """0 .. 255; one channel (grey) or three (RGB)."""
    labels: Int64[Tensor, " n"]
    """-1 or 0 .. classes - 1."""
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.images.shape[3]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]

    def select(self, rows: Int64[Tensor, " m"] | Sequence[int]) -> LabelledImages:
        """The pictures at these row numbers, in this order."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        return LabelledImages(self.images[rows], self.labels[rows], self.class_names)

    def of_class(self, label: int) -> LabelledImages:
        return self.select(torch.nonzero(self.labels == label).flatten())

    def labelled(self) -> LabelledImages:
        """Only the pictures whose class is known."""
        return self.select(torch.nonzero(self.labels != UNLABELLED).flatten())

    def counts(self) -> Int64[Tensor, " classes"]:
        """How many pictures each class has."""
        return torch.bincount(self.labels[self.labels >= 0], minlength=self.classes)

    def as_float(self) -> Float[Tensor, "n channels height width"]:
        """The pictures in [0, 1], channels first."""
        return self.images.permute(0, 3, 1, 2).float() / 255.0

    def mean_and_deviation(self) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
        """Per channel over all pixels of the pictures in [0, 1]; a constant channel has deviation 1."""
        pixels = self.images.reshape(-1, self.channels).double() / 255.0
        deviation = pixels.std(0, correction=0)
        deviation = torch.where(deviation < 1e-6, torch.ones_like(deviation), deviation)
        return pixels.mean(0).float(), deviation.float()


@dataclass(frozen=True, slots=True)
class ImageSplits:
    """What was found at one address: a training split, and perhaps others."""

    train: LabelledImages
    validation: LabelledImages | None = None
    test: LabelledImages | None = None
    name: str = ""

    def evaluation(self) -> LabelledImages:
        """The split on which figures are reported: test, else validation; `DataError` if there is neither."""
        split = self.test if self.test is not None else self.validation
        if split is None or len(split.labelled()) == 0:
            raise DataError(f"{self.name}: there is no labelled test or validation split to evaluate on")
        return split.labelled()


def load_images(path: Path | str, *, size: int | None = None) -> ImageSplits:
    """Reads the splits at `path` (`.npz`, `.csv` or folder); `size` resizes every picture to size x size.

    Raises `FileError` when the file is missing or damaged, `DataError` when what it holds cannot be used
    (several sizes without `size`, one class, NaN, labels of the wrong shape).
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path.name}: no such file or folder", missing=True)
    if path.is_dir():
        found = _read_folder(path, size)
    elif path.suffix == ".npz":
        found = _read_npz(path, size)
    elif path.suffix == ".csv":
        found = _read_list(path, size)
    else:
        raise ConfigError(f"{path.name}: images come from an .npz, a .csv list or a folder split/class/*.png")
    if "train" not in found:
        only = next(iter(found.values()))
        found = {**found, "train": only.select([])}
    return ImageSplits(found["train"], found.get("validation"), found.get("test"), path.stem)


def make_labelled_images(
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor | Sequence[int],
    class_names: Sequence[str] | None = None,
    what: str = "data",
) -> LabelledImages:
    """Checks arrays and wraps them. `images` is (n, h, w) or (n, h, w, 1|3); uint8, or floats in [0, 1].

    `labels` is (n,) or (n, 1) of integers, -1 for unlabelled. Raises `DataError` naming the first bad row.
    """
    pixels = _check_pixels(torch.as_tensor(images), what)
    numbers = torch.as_tensor(labels)
    if numbers.ndim == 2 and numbers.shape[1] > 1:
        raise DataError(
            f"{what}: labels have {numbers.shape[1]} columns (multi-label, as in ChestMNIST); "
            "one class per picture is needed"
        )
    numbers = numbers.reshape(-1)
    if numbers.is_floating_point() and not torch.equal(numbers, numbers.round()):
        raise DataError(f"{what}: labels must be whole numbers")
    numbers = numbers.to(torch.long)
    if len(numbers) != len(pixels):
        raise DataError(f"{what}: {len(pixels)} pictures but {len(numbers)} labels")
    classes = (
        len(class_names) if class_names is not None else int(numbers.max().item()) + 1 if len(numbers) else 0
    )
    wrong = torch.nonzero((numbers < UNLABELLED) | (numbers >= classes)).flatten()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{what}: row {row} has label {int(numbers[row])}; allowed -1 (unlabelled) .. {classes - 1}"
        )
    if classes < 2:
        raise DataError(f"{what}: {classes} class; a classifier needs at least 2")
    names = tuple(class_names) if class_names is not None else tuple(str(k) for k in range(classes))
    return LabelledImages(pixels.contiguous(), numbers, names)


def pick_labels(labels: Int64[Tensor, " n"], per_class: int, classes: int, seed: int) -> Int64[Tensor, " m"]:
    """Row numbers of `per_class` pictures of each class, drawn with `seed`, sorted.

    Raises `DataError` naming the class that has too few.
    """
    if per_class < 1:
        raise ConfigError(f"labels per class must be at least 1, got {per_class}")
    chosen = []
    for label in range(classes):
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) < per_class:
            raise DataError(f"class {label} has {len(rows)} labelled pictures, {per_class} were asked for")
        chosen.append(rows[torch.randperm(len(rows), generator=seeded(seed, 11, label))[:per_class]])
    return torch.cat(chosen).sort().values


def _check_pixels(images: Tensor, what: str) -> Tensor:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise DataError(
            f"{what}: images have shape {tuple(images.shape)}; needed (n, height, width[, 1 or 3])"
        )
    if images.dtype == torch.uint8:
        return images
    if images.is_floating_point():
        bad = torch.nonzero(~torch.isfinite(images).flatten(1).all(1)).flatten()
        if len(bad):
            raise DataError(f"{what}: picture {int(bad[0])} holds NaN or infinity")
        if len(images) and (images.min() < 0 or images.max() > 1):
            raise DataError(
                f"{what}: float pictures must lie in [0, 1], found {images.min():.3g} .. {images.max():.3g}"
            )
        return (images * 255).round().to(torch.uint8)
    if len(images) and (images.min() < 0 or images.max() > 255):
        raise DataError(f"{what}: integer pictures must lie in 0 .. 255")
    return images.to(torch.uint8)


def _read_npz(path: Path, size: int | None) -> dict[str, LabelledImages]:
    arrays = read_arrays(path)
    pairs = {
        SPLITS[key.removesuffix("_images")]: (arrays[key], key.removesuffix("_images"))
        for key in arrays
        if key.endswith("_images") and key.removesuffix("_images") in SPLITS
    }
    if not pairs:
        raise DataError(
            f"{path.name}: no train_images, val_images or test_images; it holds {sorted(arrays)[:8]}"
        )
    labels = {}
    for split, (images, prefix) in pairs.items():
        given = arrays.get(f"{prefix}_labels")
        labels[split] = np.full(len(images), UNLABELLED) if given is None else given
        if labels[split].ndim == 2 and labels[split].shape[1] > 1:
            raise DataError(
                f"{path.name}: {prefix}_labels is multi-label (as ChestMNIST); one class a picture is needed"
            )
    values = np.unique(np.concatenate([array.reshape(-1) for array in labels.values()]))
    values = values[values != UNLABELLED]
    names = tuple(str(name) for name in arrays["class_names"]) if "class_names" in arrays else None
    if names is None:
        # Labels that are not 0 .. K-1 keep their number as the name of their class.
        names = tuple(str(value) for value in values.tolist())
        labels = {
            split: np.where(array == UNLABELLED, UNLABELLED, np.searchsorted(values, array))
            for split, array in labels.items()
        }
    return {
        split: _resized(
            make_labelled_images(images, labels[split].astype(np.int64), names, f"{path.name} {prefix}"), size
        )
        for split, (images, prefix) in pairs.items()
    }


def _resized(data: LabelledImages, size: int | None) -> LabelledImages:
    if size is None or data.size == (size, size):
        return data
    pixels = torch.nn.functional.interpolate(
        data.images.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=True
    )
    pixels = pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return LabelledImages(pixels, data.labels, data.class_names)


def _read_folder(root: Path, size: int | None) -> dict[str, LabelledImages]:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    by_split = {SPLITS[f.name]: f for f in folders if f.name in SPLITS} or {"train": root}
    names = sorted(
        {
            entry.name
            for folder in by_split.values()
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _UNLABELLED_FOLDERS
        }
    )
    rows: list[tuple[str, Path, int]] = []
    for split, folder in by_split.items():
        for label, name in enumerate(names):
            rows += [(split, file, label) for file in _pictures(folder / name)]
        for name in _UNLABELLED_FOLDERS:
            rows += [(split, file, UNLABELLED) for file in _pictures(folder / name)]
    if "train" in by_split and by_split["train"] != root:
        for name in _UNLABELLED_FOLDERS:
            rows += [("train", file, UNLABELLED) for file in _pictures(root / name)]
    return _read_pictures(rows, tuple(names), size, root)


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)


def _read_list(path: Path, size: int | None) -> dict[str, LabelledImages]:
    with path.open(newline="", encoding="utf-8") as stream:
        try:
            lines = list(csv.DictReader(stream))
        except (csv.Error, UnicodeDecodeError) as error:
            raise FileError(f"{path.name}: not a readable CSV file ({error})") from error
    if not lines or "file" not in lines[0] or "label" not in lines[0]:
        raise DataError(
            f"{path.name}: the first line must name the columns file,label (and optionally split)"
        )
    names = sorted({line["label"].strip() for line in lines if line["label"] and line["label"].strip()})
    rows = []
    for number, line in enumerate(lines, start=2):
        split = (line.get("split") or "train").strip()
        if split not in SPLITS:
            raise DataError(f"{path.name} line {number}: split {split!r}; allowed: {', '.join(SPLITS)}")
        label = (line["label"] or "").strip()
        file = inside(path.parent, (line["file"] or "").strip())
        rows.append((SPLITS[split], file, names.index(label) if label else UNLABELLED))
    return _read_pictures(rows, tuple(names), size, path)


def _read_pictures(
    rows: list[tuple[str, Path, int]], names: tuple[str, ...], size: int | None, source: Path
) -> dict[str, LabelledImages]:
    if not rows:
        raise DataError(f"{source.name}: no pictures found (.png, .jpg, .webp in split/class folders)")
    arrays = []
    for _, file, _ in rows:
        picture = read_image(file)
        if size is not None and picture.size != (size, size):
            picture = picture.resize((size, size))
        arrays.append(np.asarray(picture, dtype=np.uint8))
        if arrays[-1].shape != arrays[0].shape:
            raise DataError(
                f"{file.name} is {arrays[-1].shape[1]}x{arrays[-1].shape[0]} pixels but {rows[0][1].name} is "
                f"{arrays[0].shape[1]}x{arrays[0].shape[0]}; give a size to resize all of them"
            )
    stack = np.stack(arrays)
    if bool((stack[..., 0] == stack[..., 1]).all() and (stack[..., 0] == stack[..., 2]).all()):
        stack = stack[..., :1]
    splits = dict.fromkeys(split for split, _, _ in rows)
    return {
        split: make_labelled_images(
            stack[[number for number, row in enumerate(rows) if row[0] == split]],
            [label for where, _, label in rows if where == split],
            names,
            f"{source.name} {split}",
        )
        for split in splits
    }
