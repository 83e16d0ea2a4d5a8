"""`fewer learn evaluate FILE.distilled.safetensors`: trains by the file's own recipe and measures."""

from __future__ import annotations

from pathlib import Path

from fewer.core.device import pick_device
from fewer.core.progress import Progress
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.scores import score_distilled

NETWORKS = 3


def evaluate_file(
    path: Path, data: LabelledImages, *, seed: int, device: str, progress: Progress
) -> dict[str, object]:
    """Mean and spread over three networks on `data`, beside what the file's datasheet reports.

    Raises `FileError` for a file that is no distilled set, `DataError` for pictures that do not fit it.
    """
    distilled = DistilledSet.load(path)
    seeds = tuple(range(NETWORKS * seed, NETWORKS * (seed + 1)))
    score = score_distilled(distilled, data, seeds=seeds, device=pick_device(device), progress=progress)
    reported = distilled.datasheet.metrics.get("distilled")
    return {
        "model": str(path),
        **score.as_dict(),
        "count": len(data),
        "pictures_trained_on": len(distilled),
        "reported": reported if isinstance(reported, dict) else None,
    }
