"""`fewer learn evaluate FILE.distilled.safetensors`: trains by the file's own recipe and measures."""

from __future__ import annotations

from pathlib import Path

from fewer.core.device import pick_device
from fewer.core.progress import Progress
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.scores import Score, score_distilled, score_steadily

MOST_REPORTED = 100
"""A datasheet that claims more networks than `fewer learn distill` trains is not taken at its word."""


def evaluate_file(
    path: Path, data: LabelledImages, *, seed: int, device: str, progress: Progress
) -> dict[str, object]:
    """Mean and spread on `data` over as many networks as the datasheet's figure is of (with `seed` 0 the very
    same ones), beside that figure. A file without one is judged by as many as it takes (`score_steadily`).

    Raises `FileError` for a file that is no distilled set, `DataError` for pictures that do not fit it.
    """
    distilled = DistilledSet.load(path)
    reported = distilled.datasheet.metrics.get("distilled")
    runs = reported.get("runs") if isinstance(reported, dict) else None

    def judge(seeds: tuple[int, ...]) -> Score:
        return score_distilled(distilled, data, seeds=seeds, device=pick_device(device), progress=progress)

    networks = runs if isinstance(runs, int) and 1 <= runs <= MOST_REPORTED else None
    score = score_steadily(judge, networks, (networks or MOST_REPORTED) * seed)
    return {
        "model": str(path),
        **score.as_dict(),
        "count": len(data),
        "pictures_trained_on": len(distilled),
        "reported": reported if isinstance(reported, dict) else None,
    }
