"""Pictures on which figures are measured, and which were trained on as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fewer.core.progress import Progress
from fewer.learn.data import ImageSplits, LabelledImages


def warn_of_overlap(splits: ImageSplits, progress: Progress) -> int:
    """Says how many test or validation pictures are also in the training split; returns the number."""
    found = 0
    known = {picture.numpy().tobytes() for picture in splits.train.images}
    for name, split in (("test", splits.test), ("validation", splits.validation)):
        if split is None or split.size != splits.train.size:
            continue
        copies = sum(picture.numpy().tobytes() in known for picture in split.images)
        if copies:
            progress.say(
                f"warning: {copies} {name} pictures are also in the training split; figures on them flatter"
            )
        found += copies
    return found


def copies_between(sets: Sequence[LabelledImages]) -> list[int]:
    """How many pictures of each set are also in another one, pixel for pixel."""
    pictures = [[hash(picture.numpy().tobytes()) for picture in data.images] for data in sets]
    homes = Counter(one for own in pictures for one in set(own))  # in how many sets a picture is
    return [sum(homes[one] > 1 for one in own) for own in pictures]
