"""`fewer learn predict`: the classes of pictures, by a trained model."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from tyro.conf import Positional

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import DataError, FileError
from fewer.core.files import read_arrays, read_image, write_bytes
from fewer.core.progress import Progress
from fewer.learn.data import UNLABELLED, LabelledImages, as_pixels, in_channels, resized
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.picture_files import fitted, pictures_in
from fewer.learn.sixteen_bits import SixteenBits


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """Tell the class of each picture."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    model: Positional[Path]
    """Folder of a trained classifier."""
    pictures: Positional[tuple[Path, ...]]
    """PNG, JPEG or WebP files, folders of them, or an .npz with an array `images` or `test_images`."""
    output: Path | None = None
    """Also write all probabilities to this CSV file."""
    seed: Annotated[int, Field(ge=0, le=2**62)] = 0
    """Accepted as by every verb; nothing is drawn here."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "fp32"
    """Number format of the network; auto: bf16 on a GPU, fp32 on a CPU."""


def predict_command(request: PredictRequest, progress: Progress) -> dict[str, object]:
    """One entry a picture: file, class, confidence; at most 100 of them in the answer."""
    model = TrainedClassifier.load(request.model, request.device, request.dtype)
    names, images = gather(request.pictures, model)
    probabilities = model.predict(images)
    confidence, labels = probabilities.max(1)
    answers = [
        {"picture": name, "class": model.class_names[label], "confidence": round(value, 6)}
        for name, label, value in zip(names, labels.tolist(), confidence.tolist(), strict=True)
    ]
    result: dict[str, object] = {"count": len(answers), "predictions": answers[:100]}
    if request.output is not None:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["picture", "class", *model.class_names])
        for name, label, row in zip(names, labels.tolist(), probabilities.tolist(), strict=True):
            writer.writerow([name, model.class_names[label], *(round(p, 6) for p in row)])
        write_bytes(request.output, stream.getvalue().encode())
        result["output"] = str(request.output)
    return result


def gather(paths: tuple[Path, ...], model: TrainedClassifier) -> tuple[list[str], torch.Tensor]:
    """Names and pixels of all pictures, in the model's size and channels. Raises `FileError`, `DataError`."""
    names: list[str] = []
    arrays: list[np.ndarray] = []
    deep = SixteenBits()
    for path in paths:
        if path.suffix.lower() == ".npz":
            found = read_arrays(path)
            key = next(
                (k for k in ("images", "test_images", "val_images", "train_images") if k in found), None
            )
            if key is None:
                raise DataError(
                    f"{path.name}: no array named images or test_images; it holds {sorted(found)[:8]}"
                )
            pixels = as_pixels(found[key], path.name)
            names += [f"{path.name}[{row}]" for row in range(len(pixels))]
            arrays += list(_fit_arrays(pixels, model))
            continue
        for file in _files(path):
            picture = read_image(file)
            deep.note(file, file.name, picture, len(arrays))
            names.append(str(file))
            arrays.append(_fit(np.asarray(picture), model))
    deep.settle(arrays, "pictures")
    if not arrays:
        raise DataError("no pictures were found; give PNG, JPEG or WebP files, a folder of them, or an .npz")
    return names, torch.from_numpy(np.stack(arrays))


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileError(f"{path.name!r} is not there; check the path", missing=True)
    if path.is_dir():
        return pictures_in(path, path)
    return [path]


def _fit_arrays(pixels: torch.Tensor, model: TrainedClassifier) -> np.ndarray:
    """The same of many at once, resized as arrays are for training and for `fewer learn evaluate`."""
    plan, nobody = model.plan, torch.full((len(pixels),), UNLABELLED)
    data = LabelledImages(in_channels(pixels, plan.channels), nobody, model.class_names)
    return resized(data, (plan.height, plan.width), model.fit).images.numpy()


def _fit(picture: np.ndarray, model: TrainedClassifier) -> np.ndarray:
    """(height, width, channels) uint8 as the model wants it; other sizes are resized."""
    from PIL import Image

    plan = model.plan
    image = Image.fromarray(picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture)
    image = image.convert("L" if plan.channels == 1 else "RGB")
    image = fitted(image, (plan.width, plan.height), model.fit)
    return np.asarray(image).reshape(plan.height, plan.width, plan.channels)
