"""Random square crops from a folder of pictures, as pure functions of a generator.

Pictures are found once, decoded on demand and kept as bytes up to a limit. A crop picks a picture, one of
the scales 1 and 1/2 (where the picture is large enough), a place and a mirror side; pictures smaller than
the crop are enlarged. Without a test folder or sheet, a hash of the name holds one picture in ten out.
"""

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.files import read_bytes, read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CACHE_BYTES = 2**30
MAX_PIXELS = 50_000_000

Crops = Float[Tensor, "batch channels side side"]


class PictureFolder:
    """Pictures under one folder, with train and held-out parts.

    Raises `DataError` for a folder without pictures, `FileError` for one that is not there or damaged.
    """

    def __init__(self, folder: Path, channels: int = 3) -> None:
        if not folder.is_dir():
            raise FileError(
                f"{folder.name!r} is no folder; --data takes a folder of PNG, JPEG or WebP pictures",
                missing=True,
            )
        self._mode = picture_mode(channels)
        self._channels = channels
        self.train, self.held_out = split_pictures(folder)
        if not self.train:
            raise DataError(f"{folder.name!r} holds no PNG, JPEG or WebP pictures to train on")
        self._cache: dict[Path, Image.Image] = {}
        self._cached_bytes = 0

    def crops(self, count: int, side: int, generator: torch.Generator, held_out: bool = False) -> Crops:
        """`count` random crops in [-1, 1]; `held_out` takes them from the other part."""
        paths = self.held_out if held_out else self.train
        return torch.stack([self.crop(paths, side, generator) for _ in range(count)])

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of all files, as 64 hexadecimal digits."""
        files = [f"{path.name}:{path.stat().st_size}" for path in (*self.train, *self.held_out)]
        return hashlib.sha256("\n".join([*files, str(len(self.train))]).encode()).hexdigest()

    def crop(
        self, paths: list[Path], side: int, generator: torch.Generator
    ) -> Float[Tensor, "channels side side"]:
        """One random crop of one of these pictures, in [-1, 1]."""
        chosen, scale, row, column, mirror = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        picture = self._picture(paths[int(chosen * len(paths))])
        shortest = min(picture.size)
        window = side * 2 if scale < 0.5 and shortest >= 2 * side else min(side, shortest)
        left = int(column * (picture.width - window + 1))
        top = int(row * (picture.height - window + 1))
        crop = picture.crop((left, top, left + window, top + window))
        if window != side:
            # Shrinking by exactly two is a mean over pixels, enlarging is smooth.
            method = Image.Resampling.BOX if window > side else Image.Resampling.BICUBIC
            crop = crop.resize((side, side), method)
        tensor = to_tensor(crop)
        return tensor.flip(-1) if mirror < 0.5 else tensor

    def _picture(self, path: Path) -> Image.Image:
        if path not in self._cache:
            picture = read_image(path, max_pixels=MAX_PIXELS)
            picture = picture.convert(self._mode)
            size = picture.width * picture.height * self._channels
            if self._cached_bytes + size > CACHE_BYTES:
                return picture
            self._cached_bytes += size
            self._cache[path] = picture
        return self._cache[path]


def split_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """(train, held out), sorted: folders `train` and `test` (or `val`) if there, else one name in ten."""
    for other in ("test", "val"):
        if (folder / "train").is_dir() and (folder / other).is_dir():
            return _pictures(folder / "train"), _pictures(folder / other)
    index = folder / "index.csv"
    paths = _pictures(folder)
    if index.exists() and (marked := _marked_test(index)):
        return [p for p in paths if p.name not in marked], [p for p in paths if p.name in marked]
    held = [path for path in paths if hashlib.sha256(path.name.encode()).digest()[0] % 10 == 0]
    if not held and len(paths) > 1:
        held = paths[-1:]
    train = [path for path in paths if path not in set(held)]
    return (train, held) if train else (paths, [])


def picture_mode(channels: int) -> str:
    """Pillow's mode of pictures of so many channels. Raises `ConfigError` but for grey and RGB."""
    if channels not in (1, 3):
        raise ConfigError(
            f"this autoencoder takes {channels} channels; files are read as grey (1) or RGB (3); "
            "from Python it takes tensors of any number"
        )
    return "L" if channels == 1 else "RGB"


def to_tensor(picture: Image.Image) -> Float[Tensor, "channels height width"]:
    """A PIL picture (RGB or grey) to [-1, 1]."""
    array = np.asarray(picture, dtype=np.float32)
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array).permute(2, 0, 1).contiguous() / 127.5 - 1


def to_picture(image: Float[Tensor, "channels height width"]) -> Image.Image:
    """[-1, 1] (clamped) to a PIL picture, RGB or grey."""
    array = ((image.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _marked_test(index: Path) -> set[str]:
    """Names of the rows whose `split` is "test" in a sheet with the columns `file` and `split`."""
    text = read_bytes(index, 2**20).decode("utf-8", errors="replace")
    rows = csv.DictReader(io.StringIO(text))
    return {row["file"] for row in rows if row.get("split") == "test" and row.get("file")}
