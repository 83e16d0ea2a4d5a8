"""`fewer learn import`: a set that the field's published code made, as a distilled file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, FullPrecision
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress
from fewer.core.tensors import read_tensors
from fewer.learn.data import load_images
from fewer.learn.distillation.distilled_set import SUFFIX
from fewer.learn.distillation.published import published_set, published_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What `fewer learn import` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore
    file: tyro.conf.Positional[Path]
    """What `fewer convert FILE.pt --to safetensors --trust-pickle` made of a res_*.pt (DC, DSA, DM) or of
    an images_best.pt (MTT, DATM)."""
    data: Path
    """The real set it was made from: its mean and deviation undo the normalisation, its classes name them."""
    output: Path
    """FILE.distilled.safetensors"""
    labels: Path | None = None
    """The converted labels_best.pt, where labels are in a file of their own."""
    method: str = "imported"
    """What made the set, for the datasheet."""
    run: int = -1
    """Which of several runs in the file; the last by default."""
    learned_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """The learning rate that was learnt along (MTT's lr_best.pt)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Accepted as by every verb, as are the next two; nothing is drawn or learnt here."""
    device: DeviceName = "auto"
    """Accepted as by every verb."""
    dtype: FullPrecision = "auto"
    """Numbers are kept as they are."""


def import_command(request: ImportRequest, progress: Progress) -> dict[str, object]:
    """Writes the file."""
    if not request.output.name.endswith(".safetensors"):
        raise ConfigError(f"--output was {request.output.name!r}: the file must end in {SUFFIX}")
    images, labels = published_tensors(read_tensors(request.file), request.run)
    if request.labels is not None:
        labels, _ = published_tensors(read_tensors(request.labels), request.run)
    if labels is None:
        raise ConfigError(f"{request.file.name!r} holds pictures without labels; give their file as --labels")
    # At the size the set was made at: that decides the deviation which undoes the normalisation.
    square = images.ndim == 4 and images.shape[2] == images.shape[3]
    data = load_images(request.data, size=images.shape[3] if square else None).train.labelled()
    made = published_set(images, labels, data, method=request.method, learned_rate=request.learned_rate)
    made.save(request.output)
    return {"output": str(request.output), "pictures": len(made), "classes": list(data.class_names)}
