"""Files of the field's published code as distilled sets of ours.

They are pickles; `fewer convert FILE.pt --to safetensors --trust-pickle` opens them, and what it writes is
read here. DC, DSA and DM write `res_*.pt` with a list `data` of (images, labels), one a run; MTT and DATM
write images and labels (DATM soft ones) in files of their own, each a bare tensor. Pictures are normalised by
the mean and deviation of the real training set, which only the real set can tell: it must be given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fewer.core.errors import DataError, FileError
from fewer.learn.data import LabelledImages, in_channels
from fewer.learn.distillation.datasheet import NOT_ANONYMOUS, Datasheet, SourceFacts
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.training import Recipe

WHITENED = (
    "Taken over from a published file. If it was trained with ZCA whitening, its pictures are whitened and "
    "only whitened pictures may be classified by what learns from them."
)


def published_tensors(tensors: Mapping[str, Tensor], run: int = -1) -> tuple[Tensor, Tensor | None]:
    """(images, labels or None) in a converted file. Raises `FileError` where there are none."""
    runs = sorted({int(found[1]) for name in tensors if (found := re.fullmatch(r"data\.(\d+)\.0", name))})
    if runs:
        if not -len(runs) <= run < len(runs):
            raise FileError(f"the file holds {len(runs)} runs; run {run} is not among them")
        number = runs[run]
        return tensors[f"data.{number}.0"], tensors.get(f"data.{number}.1")
    if len(tensors) == 1:
        return next(iter(tensors.values())), None
    if "images" in tensors:
        return tensors["images"], tensors.get("labels")
    raise FileError(
        f"tensors {sorted(tensors)[:4]} are of no known form; known: data.0.0 and data.0.1 (DC, DSA, DM), or "
        "one tensor (MTT's images)"
    )


def published_set(
    images: Tensor, labels: Tensor, data: LabelledImages, *, method: str, learned_rate: float | None = None
) -> DistilledSet:
    """`labels` are class numbers (n,) or probabilities or logits (n, classes); rows are sorted by class.

    Raises `DataError` where they do not fit each other or `data`, the set they were made from (grey or not).
    """
    if images.ndim != 4 or not images.is_floating_point() or not bool(torch.isfinite(images).all()):
        raise DataError(
            f"images have shape {tuple(images.shape)}; normalised (n, channels, height, width) needed"
        )
    if images.shape[1] not in (1, 3):
        raise DataError(f"the pictures have {images.shape[1]} channels; 1 (grey) or 3 (RGB) are needed")
    # Grey pictures that are stored as RGB are read as grey, here but not by the code that made the set.
    data = replace(data, images=in_channels(data.images, images.shape[1]))
    soft = None
    if labels.ndim == 2:
        if labels.shape[1] != data.classes:
            raise DataError(f"soft labels are for {labels.shape[1]} classes, the data has {data.classes}")
        given = labels.float()
        rows_sum_to_one = torch.allclose(given.sum(1), torch.ones(len(given)), atol=1e-3) and given.min() >= 0
        soft = given if rows_sum_to_one else given.softmax(1)
        labels = soft.argmax(1)
    labels = labels.flatten().long()
    if len(labels) != len(images) or labels.min() < 0 or labels.max() >= data.classes:
        raise DataError(
            f"{len(labels)} labels in {int(labels.min())} .. {int(labels.max())} for {len(images)} pictures "
            f"of {data.classes} classes"
        )
    counts = torch.bincount(labels, minlength=data.classes)
    if int(counts.min()) < 1:
        raise DataError(f"class {data.class_names[int(counts.argmin())]!r} has no distilled picture")
    order = torch.argsort(labels, stable=True)
    mean, deviation = data.mean_and_deviation()
    sheet = Datasheet(
        class_names=data.class_names,
        image_size=(images.shape[2], images.shape[3]),
        channels=data.channels,
        images_per_class=int(counts.min()),
        value_range="normalized",
        method=method,
        recipe=Recipe(),
        sources=(SourceFacts(sha256=data.fingerprint(), pictures_per_class=tuple(data.counts().tolist())),),
        warnings=(NOT_ANONYMOUS, WHITENED),
    )
    return DistilledSet(
        images[order].float().contiguous(),
        labels[order],
        mean,
        deviation,
        sheet,
        None if soft is None else soft[order].half(),
        None if learned_rate is None else torch.tensor([learned_rate]),
    )
