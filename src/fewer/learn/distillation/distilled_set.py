"""A distilled set and its one file, `NAME.distilled.safetensors`.

Tensors: `images` uint8 (n, channels, height, width) (or normalised floats), `labels` int64 (n,), optional
`soft_labels` float16 (m, classes), optional `learned_lr` float32 (1,), `norm_mean`, `norm_std` float32
(channels,). Metadata: `fewer.datasheet`. No path, no user name, no real picture array is in it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, Num, UInt8
from PIL import Image
from torch import Tensor

from fewer.core.errors import FileError
from fewer.core.files import safe_name, write_bytes
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.datasheet import (
    NOT_ANONYMOUS,
    REAL_PIXELS,
    Datasheet,
    SourceFacts,
    from_text,
    to_text,
)
from fewer.learn.distillation.formation import decode
from fewer.learn.distillation.plan import SELECTIONS
from fewer.learn.distillation.private import PrivacyReport
from fewer.learn.distillation.task import Synthetic, Task, denormalise, normalise
from fewer.learn.distillation.training import Recipe
from fewer.learn.picture_files import UNLABELLED_FOLDERS

DATASHEET = "fewer.datasheet"
SUFFIX = ".distilled.safetensors"
MAX_PICTURES = 5_000_000
SUM_WITHIN = 0.02
"""Probabilities in float16 add up to 1 so nearly."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class DistilledSet:
    """What a site shares. Rows of `images` and `labels` belong together."""

    images: Num[Tensor, "n channels height width"]
    """uint8 pixels, or floats that are normalised already (datasheet.value_range)."""
    labels: Int64[Tensor, " n"]
    mean: Float[Tensor, " channels"]
    deviation: Float[Tensor, " channels"]
    datasheet: Datasheet
    soft_labels: Float[Tensor, "m classes"] | None = None
    """Probabilities for the pictures after multi-formation, m = n·factor²."""
    learned_rate: Float[Tensor, " one"] | None = None
    extras: dict[str, object] = field(default_factory=dict)
    """Of the run, not written: `teacher`, whose logits are the soft labels (None where there are none)."""

    def __len__(self) -> int:
        return len(self.labels)

    def normalised(self) -> Float[Tensor, "m channels height width"]:
        """What a network is trained on: normalised, multi-formation undone."""
        if self.images.dtype == torch.uint8:
            pictures = normalise(self.images.float() / 255.0, self.mean, self.deviation)
        else:
            pictures = self.images.float()
        return decode(pictures, self.datasheet.factor)

    def targets(self) -> Tensor:
        """Soft labels (m, classes) where the set has them, else class numbers (m,)."""
        if self.soft_labels is not None:
            return self.soft_labels.float()
        return self.labels.repeat_interleave(self.datasheet.factor**2)

    def pixels(self) -> UInt8[Tensor, "n channels height width"]:
        """The stored pictures for looking at."""
        if self.images.dtype == torch.uint8:
            return self.images
        return _to_pixels(denormalise(self.images.float(), self.mean, self.deviation))

    def recipe(self) -> Recipe:
        """The datasheet's recipe, with the learned rate where there is one."""
        if self.learned_rate is None:
            return self.datasheet.recipe
        return replace(self.datasheet.recipe, learning_rate=min(10.0, max(1e-6, float(self.learned_rate[0]))))

    def as_images(self) -> LabelledImages:
        """The pictures that are trained on, as ordinary labelled pictures."""
        pixels = self.pixels().float() / 255.0
        decoded = _to_pixels(decode(pixels, self.datasheet.factor)).permute(0, 2, 3, 1).contiguous()
        labels = self.labels.repeat_interleave(self.datasheet.factor**2)
        return LabelledImages(decoded, labels, self.datasheet.class_names)

    def save(self, path: Path | str) -> None:
        """Writes the file whole or not at all. Raises `FileError`."""
        tensors = {
            "images": self.images,
            "labels": self.labels,
            "norm_mean": self.mean.float(),
            "norm_std": self.deviation.float(),
        }
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels.half()
        if self.learned_rate is not None:
            tensors["learned_lr"] = self.learned_rate.float()
        write_tensors(Path(path), tensors, {DATASHEET: to_text(self.datasheet)})

    @classmethod
    def load(cls, path: Path | str) -> DistilledSet:
        """Raises `FileError` for a missing, damaged, foreign or inconsistent file."""
        path = Path(path)
        infos, metadata = tensor_header(path)
        if DATASHEET not in metadata:
            raise FileError(f"{path.name!r} is safetensors but no distilled set: it has no datasheet")
        sheet = from_text(metadata[DATASHEET], path.name)
        _check_shapes(path.name, {name: info.shape for name, info in infos.items()}, sheet)
        tensors = read_tensors(path)
        _check_values(path.name, tensors, sheet)
        soft = tensors.get("soft_labels")
        return cls(
            tensors["images"],
            tensors["labels"],
            tensors["norm_mean"],
            tensors["norm_std"],
            sheet,
            soft.half() if soft is not None else None,
            tensors.get("learned_lr"),
        )

    def to_npz(self, path: Path | str) -> None:
        """MedMNIST's keys: `train_images` (m, h, w) or (m, h, w, 3) uint8, `train_labels` (m, 1)."""
        data = self.as_images()
        pictures = data.images.numpy()
        pictures = pictures[..., 0] if data.channels == 1 else pictures
        buffer = io.BytesIO()
        labels = data.labels[:, None].numpy()
        np.savez_compressed(
            buffer, train_images=pictures, train_labels=labels, class_names=np.array(data.class_names)
        )
        write_bytes(Path(path), buffer.getvalue())

    def to_folder(self, folder: Path | str) -> list[str]:
        """`train/CLASS/NUMBER.png`; returns the relative names."""
        data, written = self.as_images(), []
        folders = _folder_names(data.class_names)
        for row, (picture, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
            name = f"train/{folders[label]}/{row:05d}.png"
            write_bytes(Path(folder) / name, png_bytes(picture))
            written.append(name)
        return written


def _folder_names(classes: Sequence[str]) -> list[str]:
    """The classes' own names, by which they are known again; numbered where one may be no folder's, on any
    system."""
    plain = all(
        re.fullmatch(r"\w(?:[\w .,()+-]{0,60}[\w)+])?", name)
        and name.lower() not in UNLABELLED_FOLDERS
        and (not name.isascii() or safe_name(name, ""))
        for name in classes
    )
    if plain and len({name.casefold() for name in classes}) == len(classes):
        return list(classes)
    return [f"{number:03d}-{safe_name(name)}" for number, name in enumerate(classes)]


def png_bytes(picture: UInt8[Tensor, "height width channels"]) -> bytes:
    """One picture as a PNG file without metadata."""
    array = picture.numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return buffer.getvalue()


def package(
    task: Task,
    synthetic: Synthetic,
    train: LabelledImages,
    soft: Tensor | None,
    report: PrivacyReport | None,
    reached: int,
    seconds: float,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> DistilledSet:
    """From what the loop learnt to the set with its datasheet."""
    plan, source = task.plan, task.source
    images = synthetic.images.detach().cpu()
    if plan.precision == "uint8":
        stored: Tensor = _to_pixels(denormalise(images, source.mean, source.deviation))
    else:
        stored = images.to(_DTYPES[plan.precision])
    warnings = (NOT_ANONYMOUS, REAL_PIXELS) if plan.method in SELECTIONS else (NOT_ANONYMOUS,)
    sheet = Datasheet(
        class_names=train.class_names,
        image_size=train.size,
        channels=train.channels,
        images_per_class=plan.images_per_class,
        factor=synthetic.factor,
        value_range="pixels" if plan.precision == "uint8" else "normalized",
        method=plan.method,
        method_config=_jsonable(asdict(plan)),
        seed=plan.seed,
        network=_jsonable(asdict(plan.network)),
        recipe=Recipe(augmentations=plan.augmentations or ()),
        iterations=reached,
        seconds=round(seconds, 2),
        code_version=_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sources=(_source_facts(train, fingerprint=report is None),),
        privacy={
            "start": plan.start,
            "real_pixels": plan.method in SELECTIONS,
            "dp": None if report is None else asdict(report),
        },
        warnings=warnings,
    )
    per_class = len(images) // source.classes
    labels = torch.arange(source.classes).repeat_interleave(per_class)
    rate = synthetic.learning_rate
    return DistilledSet(
        stored,
        labels,
        source.mean.cpu(),
        source.deviation.cpu(),
        sheet,
        None if soft is None else soft.detach().cpu().half(),
        None if rate is None else rate.detach().cpu().float().reshape(1),
        {"teacher": teacher},
    )


def _source_facts(train: LabelledImages, *, fingerprint: bool) -> SourceFacts:
    """Under differential privacy without the fingerprint: a hash of the data is not a noised answer."""
    digest = train.fingerprint() if fingerprint else ""
    return SourceFacts(sha256=digest, pictures_per_class=tuple(train.counts().tolist()))


def _to_pixels(images: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _jsonable(value: dict[str, object]) -> dict[str, object]:
    return {name: list(entry) if isinstance(entry, tuple) else entry for name, entry in value.items()}


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("fewer")
    except metadata.PackageNotFoundError:
        return "source"


def _check_shapes(file: str, shapes: dict[str, tuple[int, ...]], sheet: Datasheet) -> None:
    for name in ("images", "labels", "norm_mean", "norm_std"):
        if name not in shapes:
            raise FileError(f"{file!r}: tensor {name!r} is missing")
    if len(set(sheet.class_names)) < len(sheet.class_names):
        raise FileError(f"{file!r}: two classes have the same name")
    count = shapes["labels"][0] if len(shapes["labels"]) == 1 else 0
    if not 1 <= count <= MAX_PICTURES:
        raise FileError(
            f"{file!r}: labels have shape {shapes['labels']}; one row of 1 .. {MAX_PICTURES:,} is needed"
        )
    wanted = {
        "images": (count, sheet.channels, *sheet.image_size),
        "norm_mean": (sheet.channels,),
        "norm_std": (sheet.channels,),
        "soft_labels": (count * sheet.factor**2, len(sheet.class_names)),
        "learned_lr": (1,),
        "labels": (count,),
    }
    for name, shape in shapes.items():
        if name not in wanted:
            raise FileError(f"{file!r}: tensor {name[:80]!r} does not belong into a distilled set")
        if shape != wanted[name]:
            raise FileError(f"{file!r}: {name} has shape {shape}, the datasheet implies {wanted[name]}")


def _check_values(file: str, tensors: dict[str, Tensor], sheet: Datasheet) -> None:
    labels, images = tensors["labels"], tensors["images"]
    if labels.dtype != torch.int64 or labels.min() < 0 or labels.max() >= len(sheet.class_names):
        raise FileError(f"{file!r}: labels must be int64 in 0 .. {len(sheet.class_names) - 1}")
    pixels = sheet.value_range == "pixels"
    if (images.dtype == torch.uint8) != pixels:
        raise FileError(f"{file!r}: images are {images.dtype}, the datasheet says {sheet.value_range}")
    for name, value in tensors.items():
        if name == "labels" or (name == "images" and pixels):
            continue
        if value.dtype not in _FLOATS:
            raise FileError(
                f"{file!r}: {name} are {value.dtype}; allowed: float16, bfloat16, float32, float64"
            )
        if not torch.isfinite(value).all():
            raise FileError(f"{file!r}: {name} holds NaN or infinity")
    for name in ("norm_std", "learned_lr"):
        if name in tensors and (tensors[name] <= 0).any():
            raise FileError(f"{file!r}: {name} must be positive")
    soft = tensors.get("soft_labels")
    if soft is not None:
        odd = torch.nonzero((soft < 0).any(1) | ((soft.double().sum(1) - 1).abs() > SUM_WITHIN)).flatten()
        if len(odd):
            raise FileError(f"{file!r}: row {int(odd[0])} of soft_labels is no list of probabilities")
