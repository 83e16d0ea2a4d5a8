"""Labelled pictures: how they are held, and how they are read from what people have.

`load_images(path)` answers with the splits found in

- a MedMNIST-style `.npz` (`train_images`, `train_labels`, `val_…`, `test_…`, optional `class_names`),
- a folder `split/class/*.png`, or `class/*.png` (then everything is the training split); a folder named
  `unlabelled` or `unlabeled` beside the classes holds pictures without a label,
- a `.csv` list with the columns `file,label` and optionally `split` (an empty label: unlabelled);
  `picture_files.py` reads both.

Every fault in them ends in `DataError` or `FileError` with the place of the fault.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.files import read_arrays
from fewer.learn.label_names import UNLABELLED, number_labels, text_of
from fewer.learn.picture_files import SPLITS, Fit, Row, folder_rows, list_rows, stack_pictures


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Pictures of one size with the number of their class; `UNLABELLED` (-1) where it is not known."""

    images: UInt8[Tensor, "n height width channels"]
    """0 .. 255; one channel (grey) or three (RGB)."""
    labels: Int64[Tensor, " n"]
    """-1 or 0 .. classes - 1."""
    class_names: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Where each picture was read from, below the folder or list that was given; empty for arrays."""

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
        files = tuple(self.files[row] for row in rows.tolist()) if self.files else ()
        return LabelledImages(self.images[rows], self.labels[rows], self.class_names, files)

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

    def fingerprint(self) -> str:
        """SHA-256 over the pictures' and labels' bytes, as 64 hexadecimal digits."""
        digest = hashlib.sha256(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()

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

    def held_out(self) -> LabelledImages | None:
        """The split on which figures are reported: test, else validation, of those that have labels."""
        parts = [split.labelled() for split in (self.test, self.validation) if split is not None]
        return next((part for part in parts if len(part)), None)

    def evaluation(self) -> LabelledImages:
        """`held_out`, which must be there. Raises `DataError`."""
        found = self.held_out()
        if found is None:
            raise DataError(f"{self.name}: there is no labelled test or validation split to evaluate on")
        return found


def load_images(path: Path | str, *, size: int | None = None, fit: Fit = "squeeze") -> ImageSplits:
    """Reads the splits at `path` (`.npz`, `.csv` or folder); `size` resizes every picture to size x size, as
    `fit` says.

    Raises `FileError` when the file is missing or damaged, `DataError` when what it holds cannot be used
    (several sizes without `size`, one class, NaN, labels of the wrong shape).
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path.name}: no such file or folder", missing=True)
    if path.is_dir():
        found = _split(*folder_rows(path), size, path, fit)
    elif path.suffix.lower() == ".npz":
        found = _read_npz(path, size, fit)
    elif path.suffix.lower() == ".csv":
        found = _split(*list_rows(path), size, path, fit)
    else:
        raise ConfigError(f"{path.name}: images come from an .npz, a .csv list or a folder split/class/*.png")
    if "train" not in found:
        only = next(iter(found.values()))
        found = {**found, "train": only.select([])}
    _check_alike(found, path.name)
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
    pixels = as_pixels(images, what)
    numbers = _native(labels, f"{what}: labels")
    if numbers.ndim == 2 and numbers.shape[1] > 1:
        raise DataError(
            f"{what}: labels have {numbers.shape[1]} columns (multi-label, as in ChestMNIST); "
            "one class per picture is needed"
        )
    numbers = numbers.reshape(-1)
    if numbers.is_floating_point() and not _whole(numbers.numpy(force=True)):
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
    if classes == 0 and len(pixels):
        raise DataError(f"{what}: no picture has a label; a classifier needs some of at least 2 classes")
    if classes < 2:
        raise DataError(f"{what}: {classes} class; a classifier needs at least 2")
    names = tuple(class_names) if class_names is not None else tuple(str(k) for k in range(classes))
    twice = (
        next((name for name in names if names.count(name) > 1), None) if len(set(names)) < classes else None
    )
    if twice is not None:
        raise DataError(f"{what}: two classes are named {twice!r}; every class needs a name of its own")
    return LabelledImages(pixels.contiguous(), numbers, names)


def pick_labels(
    labels: Int64[Tensor, " n"], per_class: int, classes: int, seed: int, names: Sequence[str] = ()
) -> Int64[Tensor, " m"]:
    """Row numbers of `per_class` pictures of each class, drawn with `seed`, sorted.

    Raises `DataError` naming the class that has too few.
    """
    if per_class < 1:
        raise ConfigError(f"labels per class must be at least 1, got {per_class}")
    chosen = []
    for label in range(classes):
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) < per_class:
            name = repr(names[label]) if names else label
            raise DataError(f"class {name} has {len(rows)} labelled pictures, {per_class} were asked for")
        chosen.append(rows[torch.randperm(len(rows), generator=seeded(seed, 11, label))[:per_class]])
    return torch.cat(chosen).sort().values


def _native(values: np.ndarray | Tensor | Sequence[int], what: str) -> Tensor:
    """A tensor of bool, whole numbers or floats in this machine's byte order. Raises `DataError`."""
    if isinstance(values, Tensor):
        kept = values
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "buif":
            raise DataError(f"{what} are of type {array.dtype}; needed: whole numbers or floats")
        if array.dtype.kind == "f":
            wider = np.float64 if array.dtype.itemsize > 4 else np.float32
            kept = torch.from_numpy(np.ascontiguousarray(array, dtype=wider))
        elif array.dtype == np.uint8 or array.dtype.kind == "b":
            kept = torch.from_numpy(np.ascontiguousarray(array))
        else:
            if array.size and array.max() > np.iinfo(np.int64).max:
                raise DataError(f"{what} hold {array.max()}, which is too large")
            kept = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    return kept


def _check_alike(found: dict[str, LabelledImages], name: str) -> None:
    """All splits must show pictures of one size and one number of channels."""
    first = next(iter(found))
    for split, data in found.items():
        if data.images.shape[1:] != found[first].images.shape[1:]:
            raise DataError(
                f"{name}: the {split} pictures are {tuple(data.images.shape[1:])} (height, width, channels), "
                f"the {first} ones {tuple(found[first].images.shape[1:])}; give --image-size"
            )


def as_pixels(values: np.ndarray | Tensor, what: str) -> UInt8[Tensor, "n height width channels"]:
    """Pictures as they are held: from (n, h, w) or (n, h, w, 1|3) of bytes, whole numbers in 0 .. 255, floats
    in [0, 1] or booleans. Raises `DataError` naming the fault."""
    images = _native(values, f"{what}: pictures")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise DataError(
            f"{what}: images have shape {tuple(images.shape)}; needed (n, height, width[, 1 or 3])"
        )
    if images.dtype == torch.uint8:
        return images
    if images.dtype == torch.bool:
        return images.to(torch.uint8) * 255
    if images.is_floating_point():
        bad = torch.nonzero(~torch.isfinite(images).flatten(1).all(1)).flatten()
        if len(bad):
            raise DataError(f"{what}: picture {int(bad[0])} holds NaN or infinity")
        if len(images) and (images.min() < 0 or images.max() > 1):
            raise DataError(
                f"{what}: float pictures must lie in [0, 1], found {images.min():.3g} .. {images.max():.3g}; "
                "divide them by their largest possible value"
            )
        return (images * 255).round().to(torch.uint8)
    if len(images) and (images.min() < 0 or images.max() > 255):
        raise DataError(
            f"{what}: integer pictures must lie in 0 .. 255, found {int(images.min())} .. "
            f"{int(images.max())}; divide them by their largest possible value and give floats in [0, 1]"
        )
    return images.to(torch.uint8)


def _read_npz(path: Path, size: int | None, fit: Fit) -> dict[str, LabelledImages]:
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
    given = {
        prefix: arrays.get(f"{prefix}_labels", np.full(images.shape[:1], UNLABELLED))
        for images, prefix in pairs.values()
    }
    names = None
    if "class_names" in arrays:
        names = tuple(text_of(arrays["class_names"].reshape(-1), f"{path.name}: class_names").tolist())
    labels, names = number_labels(given, names, path.name)
    made = {
        split: make_labelled_images(images, labels[prefix], names, f"{path.name} {prefix}")
        for split, (images, prefix) in pairs.items()
    }
    return made if size is None else {split: resized(one, (size, size), fit) for split, one in made.items()}


def _whole(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all()) and np.array_equal(values, values.round())


def in_channels(
    images: UInt8[Tensor, "n height width _"], channels: int
) -> UInt8[Tensor, "n height width _"]:
    """Grey pictures as RGB, or RGB ones as grey with the weights of ITU-R 601 (as Pillow does it)."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, -1, -1, 3).contiguous()
    weights = torch.tensor([19595, 38470, 7471])  # of 65536
    return (((images.int() * weights).sum(-1, keepdim=True) + 2**15) >> 16).to(torch.uint8)


def resized(data: LabelledImages, size: tuple[int, int], fit: Fit = "squeeze") -> LabelledImages:
    """The pictures in `size` (height, width), by antialiased bilinear interpolation."""
    if data.size == size:
        return data
    bound = {"crop": min, "pad": max, "squeeze": lambda own, _: own}[fit]
    (height, width), (tall, broad) = data.size, size
    box = bound(height, round(width * tall / broad)), bound(width, round(height * broad / tall))
    above, before = (box[0] - height) // 2, (box[1] - width) // 2  # negative: is cut off
    borders = (before, box[1] - width - before, above, box[0] - height - above)
    parts = [data.images.new_zeros(0, *size, data.channels)]
    for part in data.images.split(4096):
        pixels = torch.nn.functional.pad(part.permute(0, 3, 1, 2).float(), borders)
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        parts.append(pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return replace(data, images=torch.cat(parts).contiguous())


def _split(
    rows: list[Row], names: tuple[str, ...], size: int | None, source: Path, fit: Fit
) -> dict[str, LabelledImages]:
    """The listed pictures by split."""
    if not rows:
        raise DataError(f"{source.name}: no pictures found (.png, .jpg, .webp in split/class folders)")
    stack = stack_pictures(rows, size, source.name, fit)
    root = source if source.is_dir() else source.parent
    roots = (root, root.resolve())  # a list's files are resolved
    found = {}
    for split in dict.fromkeys(split for split, _, _ in rows):
        own = [number for number, row in enumerate(rows) if row[0] == split]
        labels, files = [rows[number][2] for number in own], [rows[number][1] for number in own]
        made = make_labelled_images(stack[own], labels, names, f"{source.name} {split}")
        found[split] = replace(made, files=tuple(_below(file, roots) for file in files))
    return found


def _below(file: Path, roots: Sequence[Path]) -> str:
    root = next((one for one in roots if file.is_relative_to(one)), file.parent)
    return file.relative_to(root).as_posix()
