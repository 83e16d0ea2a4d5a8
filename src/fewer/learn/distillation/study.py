"""The indicator's study: every data set by random subsets and by distilling, with the same recipe."""

from __future__ import annotations

from collections.abc import Sequence

from fewer.core.device import pick_device
from fewer.core.progress import Progress, SilentProgress
from fewer.learn.data import ImageSplits
from fewer.learn.distillation.architectures import NetworkPlan, build_network
from fewer.learn.distillation.indicator import IndicatorPoint
from fewer.learn.distillation.loop import distill
from fewer.learn.distillation.plan import DistillPlan, MethodName
from fewer.learn.distillation.scores import TestPictures, score_distilled, score_random
from fewer.learn.distillation.task import Source
from fewer.learn.distillation.training import Recipe


def study_indicator(
    splits: Sequence[ImageSplits],
    method: MethodName,
    images_per_class: int,
    *,
    network: NetworkPlan,
    recipe: Recipe,
    iterations: int | None = None,
    draws: int = 5,
    seeds: tuple[int, ...] = (0, 1),
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[IndicatorPoint]:
    """One point per data set: balanced accuracy of `draws` random subsets and of one distilled set, both with
    networks of the given seeds. Raises `DataError` for a data set without test pictures."""
    progress = progress or SilentProgress()
    where, points = pick_device(device), []
    for number, one in enumerate(splits):
        progress.say(f"{one.name or number}: random subsets, then {method}")
        train, test = one.train.labelled(), one.evaluation()
        source = Source.of(train, where)
        model = build_network(network, train.channels, train.size, train.classes).to(where)
        judged = TestPictures.of(test, source.mean, source.deviation, where)
        random = score_random(source, model, judged, recipe, images_per_class, draws, seeds)
        plan = DistillPlan(
            method=method,
            images_per_class=images_per_class,
            iterations=iterations,
            network=network,
            seed=seed,
        )
        distilled = distill(train, plan=plan, device=device, progress=progress)
        score = score_distilled(distilled, test, recipe=recipe, seeds=seeds, device=where)
        points.append(
            IndicatorPoint(
                name=one.name or f"set{number}",
                random=random.balanced_accuracy,
                distilled=score.balanced_accuracy,
            )
        )
    return points
