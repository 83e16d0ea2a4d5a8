"""ColoredMNIST and RotatedMNIST made from any MNIST file, by DomainBed's recipes.

A file is an `.npz` (`train_images` or Keras' `x_train`, ...) or a pair of IDX files (`.gz` or not), given by
the images' file. With fewer digits than MNIST's 70,000 say so ("ColoredMNIST-10k") and compare with nothing
published.
"""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.files import read_arrays, read_bytes
from fewer.learn.data import make_labelled_images
from fewer.learn.domains.images import Domains

COLOURS = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}  # domain -> P(colour is not the label)
LABEL_NOISE = 0.25
ANGLES = (0, 15, 30, 45, 60, 75)
_MAX_BYTES = 256 * 2**20
_IMAGES, _LABELS = 0x00000803, 0x00000801

Digits = tuple[UInt8[Tensor, "n _ _"], Int64[Tensor, " n"]]


def read_mnist(path: Path | str) -> Digits:
    """All digits of a file, training and test together. Raises `FileError` or `DataError`."""
    path = Path(path)
    images, labels = _from_npz(path) if path.suffix == ".npz" else _from_idx(path)
    images, labels = np.asarray(images), np.asarray(labels).reshape(-1)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim != 3 or images.dtype != np.uint8 or len(images) != len(labels):
        raise DataError(
            f"{path.name}: images of shape {images.shape} ({images.dtype}) and {len(labels)} labels; "
            "needed (n, 28, 28) of uint8 and n labels"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0 or labels.max(initial=0) > 9:
        raise DataError(f"{path.name}: labels must be the digits 0 .. 9")
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def colored_mnist(digits: Digits, seed: int = 0, *, size: int | None = None) -> Domains:
    """Is the digit below 5? Label flipped with 25 %, colour tells the noisy label with 90 %, 80 %, 10 %.

    Red and green hold the digit, blue stays empty (DomainBed has the two channels alone). The digits are
    shuffled by `seed` and dealt to the three domains in turn.
    """
    images, labels = _resized(digits, size)
    order = torch.randperm(len(labels), generator=seeded(seed, 41))
    names, sets = [], []
    for number, (name, flip) in enumerate(COLOURS.items()):
        rows = order[number :: len(COLOURS)]
        generator = seeded(seed, 42, number)
        below = (labels[rows] < 5).long()
        label = below ^ (torch.rand(len(rows), generator=generator) < LABEL_NOISE).long()
        colour = label ^ (torch.rand(len(rows), generator=generator) < flip).long()
        pixels = torch.zeros(*images[rows].shape, 3, dtype=torch.uint8)
        pixels[torch.arange(len(rows)), :, :, colour] = images[rows]
        names.append(name)
        sets.append(make_labelled_images(pixels, label, ("five and above", "below five"), name))
    return Domains(tuple(names), tuple(sets), name=f"ColoredMNIST-{_thousands(labels)}")


def rotated_mnist(digits: Digits, seed: int = 0, *, size: int | None = None) -> Domains:
    """Ten digits at six angles, 0 to 75 degrees, dealt to the domains in turn."""
    images, labels = _resized(digits, size)
    order = torch.randperm(len(labels), generator=seeded(seed, 43))
    sets = []
    for number, angle in enumerate(ANGLES):
        rows = order[number :: len(ANGLES)]
        turned = np.stack(
            [
                np.asarray(Image.fromarray(images[row].numpy()).rotate(angle, Image.Resampling.BILINEAR))
                for row in rows
            ]
        )
        sets.append(make_labelled_images(turned, labels[rows], tuple("0123456789"), f"{angle}"))
    return Domains(
        tuple(str(angle) for angle in ANGLES), tuple(sets), name=f"RotatedMNIST-{_thousands(labels)}"
    )


def _thousands(labels: Tensor) -> str:
    return f"{len(labels) / 1000:g}k"


def _resized(digits: Digits, size: int | None) -> Digits:
    images, labels = digits
    if len(labels) < 6 * len(ANGLES):
        raise DataError(
            f"{len(labels)} digits are too few to deal to domains; at least {6 * len(ANGLES)} are needed"
        )
    if size is None or images.shape[1:] == (size, size):
        return images, labels
    if size < 4:
        raise ConfigError(f"size is {size}; at least 4 pixels are needed")
    smaller = torch.nn.functional.interpolate(
        images[:, None].float(), (size, size), mode="bilinear", antialias=True
    )
    return smaller[:, 0].round().clamp(0, 255).to(torch.uint8), labels


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_arrays(path)
    pairs = [("train_images", "train_labels"), ("val_images", "val_labels"), ("test_images", "test_labels")]
    pairs += [("x_train", "y_train"), ("x_test", "y_test")]
    found = [(arrays[i], arrays[k].reshape(-1)) for i, k in pairs if i in arrays and k in arrays]
    if not found:
        raise DataError(f"{path.name}: no train_images or x_train; it holds {sorted(arrays)[:8]}")
    shapes = {images.shape[1:] for images, _ in found}
    if len(shapes) > 1:
        raise DataError(f"{path.name}: its splits have pictures of several sizes: {sorted(shapes)}")
    return np.concatenate([images for images, _ in found]), np.concatenate([labels for _, labels in found])


def _from_idx(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images' file, and beside it the labels' file of the usual name."""
    name = path.name.replace("images-idx3", "labels-idx1").replace("images.idx3", "labels.idx1")
    if name == path.name:
        raise ConfigError(f"{path.name!r} is no .npz and no '…images-idx3-ubyte[.gz]'; give one of these")
    return _idx(path, _IMAGES), _idx(path.with_name(name), _LABELS)


def _idx(path: Path, magic: int) -> np.ndarray:
    data = read_bytes(path, _MAX_BYTES)
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                data = stream.read(_MAX_BYTES + 1)
        except (OSError, EOFError) as error:
            raise FileError(f"{path.name!r} is a damaged gzip file: {error}") from error
        if len(data) > _MAX_BYTES:
            raise FileError(f"{path.name!r} unpacks to more than {_MAX_BYTES:,} bytes; refused")
    if int.from_bytes(data[:4], "big") != magic:
        raise FileError(f"{path.name!r} is no IDX file of {'images' if magic == _IMAGES else 'labels'}")
    dimensions = magic & 0xFF
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(data[4 + 4 * k : 8 + 4 * k], "big") for k in range(dimensions)]
    if math.prod(shape) != len(data) - start:
        raise FileError(f"{path.name!r} declares {shape}, but holds {len(data) - start:,} bytes")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy()
