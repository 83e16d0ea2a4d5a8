"""Several sites' distilled sets as one: classes aligned by name, every site's provenance kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.errors import DataError
from fewer.learn.distillation.distilled_set import DistilledSet


def merge(sets: Sequence[DistilledSet], title: str = "") -> DistilledSet:
    """The joined set; its normalisation pools the sites' by their numbers of real pictures.

    Beside a set of colour pictures grey ones become colour: the same pixels, three times. Raises `DataError`
    for fewer than two sets or sets that cannot be trained on together (sizes, multi-formation factors),
    naming what differs.
    """
    if len(sets) < 2:
        raise DataError("merging needs at least 2 distilled sets")
    channels = max(one.datasheet.channels for one in sets)
    sets = [_in_colour(one) if one.datasheet.channels < channels else one for one in sets]
    first = sets[0].datasheet
    for number, one in enumerate(sets[1:], start=2):
        for what in ("image_size", "factor"):
            own, wanted = getattr(one.datasheet, what), getattr(first, what)
            if own != wanted:
                raise DataError(
                    f"set {number} has {what} {own}, the first {wanted}; distil both with the same"
                )
    names = tuple(dict.fromkeys(name for one in sets for name in one.datasheet.class_names))
    labels = torch.cat([_places(one, names)[one.labels] for one in sets])
    mean, deviation = _pooled_statistics(sets)
    counts = torch.bincount(labels, minlength=len(names))
    soft = _joined_soft_labels(sets, names) if any(one.soft_labels is not None for one in sets) else None
    sheet = replace(
        first,
        title=title or f"{len(sets)} sites merged",
        class_names=names,
        images_per_class=int(counts.min()),
        value_range="pixels",
        method="merged",
        method_config={"parts": [{"method": s.datasheet.method, **s.datasheet.method_config} for s in sets]},
        iterations=0,
        seconds=0.0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sources=tuple(source for one in sets for source in one.datasheet.sources),
        licence="; ".join(dict.fromkeys(one.datasheet.licence or "not stated" for one in sets)),
        metrics={},
        cross_architecture={},
        privacy={"parts": [dict(one.datasheet.privacy) for one in sets]},
        warnings=tuple(dict.fromkeys(text for one in sets for text in one.datasheet.warnings)),
    )
    images = torch.cat([one.pixels() for one in sets])
    return DistilledSet(images, labels, mean, deviation, sheet, soft)


def _in_colour(one: DistilledSet) -> DistilledSet:
    """Also its statistics, which its pictures are normalised by."""
    sheet = replace(one.datasheet, channels=3)
    images = one.images.expand(-1, 3, -1, -1).contiguous()
    return replace(
        one, images=images, mean=one.mean.expand(3), deviation=one.deviation.expand(3), datasheet=sheet
    )


def _places(one: DistilledSet, names: tuple[str, ...]) -> Tensor:
    return torch.tensor([names.index(name) for name in one.datasheet.class_names])


def _pooled_statistics(
    sets: Sequence[DistilledSet],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and deviation of all sites' real pixels together: E[x²] and E[x] add up by weight."""
    sizes = [float(sum(sum(s.pictures_per_class) for s in one.datasheet.sources) or len(one)) for one in sets]
    weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    means = torch.stack([one.mean.double() for one in sets])
    squares = torch.stack([one.deviation.double().square() + one.mean.double().square() for one in sets])
    mean = (weights[:, None] * means).sum(0)
    variance = (weights[:, None] * squares).sum(0) - mean.square()
    return mean.float(), variance.clamp(min=1e-12).sqrt().float()


def _joined_soft_labels(sets: Sequence[DistilledSet], names: tuple[str, ...]) -> Float[Tensor, "m classes"]:
    """Sites without soft labels, and classes a site does not know, get hard ones and zeros."""
    parts = []
    for one in sets:
        targets = one.targets()
        if targets.ndim == 1:
            targets = torch.nn.functional.one_hot(targets, len(one.datasheet.class_names)).float()
        wide = torch.zeros(len(targets), len(names))
        wide[:, _places(one, names)] = targets
        parts.append(wide)
    return torch.cat(parts).half()
