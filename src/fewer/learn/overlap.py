"""Pictures on which figures are measured, and which were trained on as well."""

from __future__ import annotations

from fewer.core.progress import Progress
from fewer.learn.data import ImageSplits


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
