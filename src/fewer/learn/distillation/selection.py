"""Sets made of real pictures: random, herding and k-centre as controls, RDED's tiles of telling crops.

They need no optimisation, and what they give holds real pixels: not for sharing where pictures are private.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.learn.distillation.formation import encode
from fewer.learn.distillation.stacked import Parameters, logits
from fewer.learn.distillation.task import Source, Synthetic, Task
from fewer.learn.distillation.trajectory import recorded, snapshot

CROPS = 5
"""Random crops of each picture that RDED compares."""


def random_rows(source: Source, per_class: int, seed: int) -> Int64[Tensor, " picked"]:
    """`per_class` different rows of every class, ordered by class. Raises `DataError` if a class is too
    small.
    """
    _require(source, per_class)
    return source.rows(per_class, seeded(seed, 401)).flatten()


def herding_rows(
    source: Source, features: Float[Tensor, "n dim"], per_class: int
) -> Int64[Tensor, " picked"]:
    """Greedy picks whose running mean stays closest to the class mean of the features (Welling 2009)."""
    _require(source, per_class)
    chosen = []
    for label in range(source.classes):
        own = features[source.starts[label] : source.starts[label + 1]]
        mean, total = own.mean(0), torch.zeros_like(own[0])
        free = torch.ones(len(own), dtype=torch.bool, device=own.device)
        for picked in range(1, per_class + 1):
            distance = (mean - (total + own) / picked).square().sum(1)
            best = int(torch.where(free, distance, torch.inf).argmin())
            free[best] = False
            total = total + own[best]
            chosen.append(best + source.starts[label])
    return torch.tensor(chosen)


def k_centre_rows(
    source: Source, features: Float[Tensor, "n dim"], per_class: int
) -> Int64[Tensor, " picked"]:
    """Greedy k-centre (Sener & Savarese 2018): from the picture nearest the mean, always the farthest
    next.
    """
    _require(source, per_class)
    chosen = []
    for label in range(source.classes):
        own = features[source.starts[label] : source.starts[label + 1]]
        best = int((own - own.mean(0)).square().sum(1).argmin())
        distance = torch.full((len(own),), torch.inf, device=own.device)
        for _ in range(per_class):
            chosen.append(best + source.starts[label])
            distance = torch.minimum(distance, (own - own[best]).square().sum(1))
            distance[best] = -1.0
            best = int(distance.argmax())
    return torch.tensor(chosen)


def telling_crops(task: Task) -> Synthetic:
    """RDED (Sun et al. 2024): of random crops the ones an expert classifies most surely, tiled into
    pictures.
    """
    source, plan = task.source, task.plan
    factor = plan.factor or 1
    wanted = plan.images_per_class * factor**2
    _require(source, wanted)
    teacher = snapshot(recorded(task), -1, 0)
    pictures = []
    for label in range(source.classes):
        own = source.of_class(label)
        generator = seeded(plan.seed, 402, label)
        take = min(len(own), max(wanted * 4, 256))
        own = own[torch.randperm(len(own), generator=generator)[:take].to(own.device)]
        crops = torch.stack([_random_crop(own, generator) for _ in range(CROPS)], 1)
        losses = torch.stack([_losses(task, teacher, crops[:, k], label) for k in range(CROPS)], 1)
        best_crop = losses.argmin(1)
        rows = losses.min(1).values.argsort()[:wanted]
        pictures.append(crops[rows, best_crop[rows]])
    return Synthetic(encode(torch.cat(pictures), factor), source.classes, factor)


def _losses(task: Task, teacher: Parameters, images: Tensor, label: int) -> Float[Tensor, " n"]:
    with torch.no_grad():
        outputs = logits(task.network, teacher, images)
    labels = torch.full((len(images),), label, device=images.device)
    return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")


def _random_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """A square of 60 to 100 % of the side, the same for the batch, resized to the whole."""
    height, width = images.shape[2:]
    share = 0.6 + 0.4 * float(torch.rand((), generator=generator))
    tall, wide = max(1, round(height * share)), max(1, round(width * share))
    top = int(torch.randint(height - tall + 1, (1,), generator=generator))
    left = int(torch.randint(width - wide + 1, (1,), generator=generator))
    crop = images[:, :, top : top + tall, left : left + wide]
    return torch.nn.functional.interpolate(crop, (height, width), mode="bilinear", align_corners=False)


def _require(source: Source, per_class: int) -> None:
    for label in range(source.classes):
        if source.count(label) < per_class:
            raise DataError(
                f"class {source.called(label)} has {source.count(label)} pictures, {per_class} are needed; "
                "ask for fewer images per class or use a method that makes pictures (dc, dm)"
            )
