"""A user's own pictures: a folder of images with their captions beside them.

Captions are looked for in this order:
- `metadata.jsonl`, one JSON object a line: {"file_name": "a.png", "text": ["…", …], "scores": [30, …]};
- `a.txt` beside `a.png`: one caption a line, with an optional score and a tab before it;
- the file's name: "red-car_02.png" gives "red car".
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewer.core.errors import DataError, FileError
from fewer.core.files import inside, read_bytes, read_image
from fewer.core.progress import Progress, SilentProgress, track
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.training.buckets import Shape, fit_to, nearest_shape

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MAX_CAPTION_BYTES = 2**20
_MAX_LIST_BYTES = 2**30
_DEFAULT_SCORE = 30.0


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """One picture of a training folder and its (caption, score) pairs."""

    path: Path
    captions: tuple[tuple[str, float], ...]


def read_folder(folder: Path) -> list[CaptionedPicture]:
    """All pictures of a folder, subfolders included, in the order of their names.

    Raises `FileError` for a folder that is not there or damaged captions, `DataError` without pictures.
    """
    if not folder.is_dir():
        raise FileError(f"the training folder {folder.name!r} is not there; check --data", missing=True)
    listed = _read_list(folder)
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            name = path.relative_to(folder).as_posix()
            inside(folder, name)  # a link that leads out of the folder is refused
            found.append(CaptionedPicture(path, listed.get(name) or _captions_beside(path)))
    if not found:
        raise DataError(
            f"{folder.name!r} holds no PNG, JPEG or WebP pictures; put them there with their captions"
        )
    return found


def _read_list(folder: Path) -> dict[str, tuple[tuple[str, float], ...]]:
    path = folder / "metadata.jsonl"
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(
        read_bytes(path, _MAX_LIST_BYTES).decode("utf-8", "replace").splitlines(), 1
    ):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            texts = [entry["text"]] if isinstance(entry["text"], str) else list(entry["text"])
            scores = [float(score) for score in entry.get("scores", [_DEFAULT_SCORE] * len(texts))]
            pairs = tuple(zip([str(text) for text in texts], scores, strict=True))
            found[str(entry["file_name"])] = pairs
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FileError(
                f"'metadata.jsonl', line {number}: {error}; a line is "
                '{"file_name": "a.png", "text": ["caption", ...], "scores": [30, ...]}'
            ) from error
    return found


def _captions_beside(path: Path) -> tuple[tuple[str, float], ...]:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        words = re.sub(r"[\W_]+|\d+", " ", path.stem).strip()
        return ((words or path.parent.name, _DEFAULT_SCORE),)
    pairs = []
    for line in read_bytes(beside, _MAX_CAPTION_BYTES).decode("utf-8", "replace").splitlines():
        score, tab, text = line.partition("\t")
        try:
            pair = (text.strip(), float(score)) if tab else (line.strip(), _DEFAULT_SCORE)
        except ValueError:
            pair = (line.strip(), _DEFAULT_SCORE)
        if pair[0]:
            pairs.append(pair)
    if not pairs:
        raise DataError(f"{beside.name!r} holds no caption; write one sentence a line")
    return tuple(pairs)


def encode_pictures(
    pictures: list[CaptionedPicture],
    autoencoder: DCAutoencoder,
    shapes: list[Shape],
    progress: Progress | None = None,
) -> list[Tensor]:
    """Latents of every picture, resized and cropped to its bucket; on the CPU."""
    parameter = next(autoencoder.parameters())
    latents = []
    for picture in track(pictures, progress or SilentProgress(), "pictures", len(pictures)):
        image = read_image(picture.path)
        pixels = picture_tensor(fit_to(image, nearest_shape(image.height, image.width, shapes)))
        found = autoencoder.encode(pixels[None].to(parameter.device, parameter.dtype), check_finite=True)
        latents.append(found[0].float().cpu())
    return latents


def picture_tensor(image: object) -> Tensor:
    """A PIL image or a (height, width, 3) byte array as a (3, height, width) tensor in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def count_buckets(latents: list[Tensor]) -> Mapping[str, int]:
    """How many pictures each latent shape has, for the report: {"16x16": 12}."""
    counts: dict[str, int] = {}
    for picture in latents:
        name = f"{picture.shape[1]}x{picture.shape[2]}"
        counts[name] = counts.get(name, 0) + 1
    return counts
