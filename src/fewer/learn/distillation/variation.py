"""The paper's other study: one set distilled from a mixture of data sets against each one distilled by
itself.

Small variation: the same classes seen at several sites (labels shared). Great variation: unlike data sets in
one task (labels offset). The union of the single distillations has as many pictures as the distilled union.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from fewer.core.errors import DataError
from fewer.learn.data import ImageSplits, LabelledImages, resized
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.merge import merge
from fewer.learn.distillation.scores import Score, score_distilled
from fewer.learn.distillation.training import Recipe

VariationKind = Literal["small", "great"]


@dataclass(frozen=True, slots=True)
class VariationResult:
    """Balanced accuracy and the rest on the mixture's test pictures."""

    kind: VariationKind
    of_union: Score
    """One set distilled from all data together."""
    union_of: Score
    """The single distilled sets, joined."""
    single: dict[str, Score]
    """Each data set's own distilled set on its own test pictures."""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def mix(sets: Sequence[LabelledImages], kind: VariationKind, names: Sequence[str]) -> LabelledImages:
    """All pictures as one task, at the first one's size and channels.

    small: classes are matched by name, all sets must have the same. great: each set keeps its own classes,
    named `SET/CLASS`. Raises `DataError` for one set or for differing classes under `small`.
    """
    if len(sets) < 2:
        raise DataError("a mixture needs at least 2 data sets")
    channels, size = max(one.channels for one in sets), sets[0].size
    if kind == "small":
        for one, name in zip(sets, names, strict=True):
            if set(one.class_names) != set(sets[0].class_names):
                raise DataError(f"{name}: its classes differ from the first set's; use variation 'great'")
        classes = sets[0].class_names
    else:
        classes = tuple(f"{name}/{c}" for one, name in zip(sets, names, strict=True) for c in one.class_names)
        if len(set(classes)) != len(classes):
            raise DataError("two data sets have the same name; give them different ones")
    images, labels, offset = [], [], 0
    for one in sets:
        pictures = resized(one, size).images
        images.append(pictures.expand(-1, -1, -1, channels) if one.channels < channels else pictures)
        if kind == "small":
            labels.append(torch.tensor([classes.index(name) for name in one.class_names])[one.labels])
        else:
            labels.append(one.labels + offset)
            offset += one.classes
    return LabelledImages(torch.cat(images).contiguous(), torch.cat(labels), classes)


def study_variation(
    splits: Sequence[ImageSplits],
    kind: VariationKind,
    distil: Callable[[LabelledImages, int], DistilledSet],
    images_per_class: int,
    *,
    recipe: Recipe,
    seeds: tuple[int, ...] = (0, 1, 2),
    device: torch.device | str = "cpu",
) -> VariationResult:
    """`distil(train, images_per_class)` makes one set. Both sides have the same total number of pictures:
    under `small` the union gets images_per_class x number of sets per class."""
    names = [one.name or f"set{k}" for k, one in enumerate(splits)]
    trains = [one.train.labelled() for one in splits]
    tests = [one.evaluation() for one in splits]
    mixed_train, mixed_test = mix(trains, kind, names), mix(tests, kind, names)
    per_class = images_per_class * (len(splits) if kind == "small" else 1)
    union = distil(mixed_train, per_class)
    parts = [
        distil(_as_part(one, mixed_train, kind, name), images_per_class)
        for one, name in zip(trains, names, strict=True)
    ]

    def score(one: DistilledSet, test: LabelledImages) -> Score:
        return score_distilled(one, test, recipe=recipe, seeds=seeds, device=device)

    single = {
        name: score(part, _as_part(test, mixed_train, kind, name))
        for name, part, test in zip(names, parts, tests, strict=True)
    }
    return VariationResult(kind, score(union, mixed_test), score(merge(parts), mixed_test), single)


def _as_part(data: LabelledImages, mixed: LabelledImages, kind: VariationKind, name: str) -> LabelledImages:
    """One data set at the mixture's size and channels, its classes named as there."""
    pictures = resized(data, mixed.size).images
    if data.channels < mixed.channels:
        pictures = pictures.expand(-1, -1, -1, mixed.channels).contiguous()
    names = data.class_names if kind == "small" else tuple(f"{name}/{c}" for c in data.class_names)
    return LabelledImages(pictures, data.labels, names)
