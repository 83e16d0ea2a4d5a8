"""Gradient matching (DC, Zhao, Mopuri & Bilen 2021; DSA, Zhao & Bilen 2021): equation 6 of DC.

A small set teaches like a large one if both pull a network's weights in the same direction. The distance
sums, over every output unit of every weight tensor, one minus the cosine of the two gradients; biases and
norms (one-dimensional) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.learn.distillation.augment import draw_augmentation
from fewer.learn.distillation.stacked import Parameters, class_gradients
from fewer.learn.distillation.task import Synthetic, Task
from fewer.learn.distillation.training import descend

DistanceName = Literal["units", "cosine", "squares"]
LESSON = 256
"""Synthetic pictures in a step of the network, at most."""
_TINY = 1e-6


def gradient_distance(
    ours: Parameters, theirs: Parameters, kind: DistanceName = "units", leading: int = 0
) -> Tensor:
    """Distance of two gradients, summed over `leading` leading axes (classes, networks).

    units: DC's, per output unit. cosine: one cosine over everything. squares: sum of squared differences.
    """
    names = [name for name, value in ours.items() if value.ndim - leading >= 2]
    if kind == "units":
        return torch.stack([_by_unit(ours[name], theirs[name], leading) for name in names]).sum()
    flat = [torch.cat([side[name].flatten(leading) for name in names], -1) for side in (ours, theirs)]
    if kind == "squares":
        return (flat[0] - flat[1]).square().sum()
    return (1 - _cosine(flat[0], flat[1])).sum()


def _by_unit(ours: Tensor, theirs: Tensor, leading: int) -> Tensor:
    return (1 - _cosine(ours.flatten(leading + 1), theirs.flatten(leading + 1))).sum()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    # sqrt has an infinite slope at 0, where dead units sit; the clamp gives them slope 0.
    norms = (a.square().sum(-1) * b.square().sum(-1)).clamp(min=1e-30).sqrt()
    return (a * b).sum(-1) / (norms + _TINY)


def gradient_matching(task: Task, synthetic: Synthetic, step: int) -> Iterator[Tensor]:
    """The losses of one fresh network: after each, the caller moves the pictures, then the network
    learns them.

    DSA is this with `task.augmentations`; IDC is DSA with a multi-formation factor above 1.
    """
    plan = task.plan
    outer_steps, inner_steps = plan.outer_steps or 1, plan.inner_steps or 1

    def matching(pictures: Tensor, parameters: Parameters, real: Tensor) -> Tensor:
        ours, theirs = (
            class_gradients(task.network, parameters, images, task.labels_of(images), batched=task.batched)
            for images in (pictures, real)
        )
        theirs = {name: value.detach() for name, value in theirs.items()}
        return gradient_distance(ours, theirs, plan.distance, leading=1)

    def learn(parameters: Parameters, pictures: Tensor, labels: Tensor) -> Parameters:
        return descend(task.network, parameters, pictures, labels, plan.network_learning_rate)

    parameters = task.fresh_network(step)
    for outer in range(outer_steps):
        generator = task.generator(step, outer)
        real = task.source.sample(plan.real_batch, generator)
        change = task.draw_augmentation(generator)
        pictures = change.on_classes(synthetic.by_class())
        yield task.graphs.loss("gradients", matching)(pictures, parameters, change.on_classes(real))
        if outer + 1 < outer_steps:
            pictures, labels = lessons(task, synthetic, inner_steps, task.generator(step, outer, 1))
            parameters = task.graphs.function("learn", learn)(parameters, pictures, labels)


def lessons(
    task: Task, synthetic: Synthetic, rounds: int, generator: torch.Generator
) -> tuple[Float[Tensor, "steps batch channels height width"], Int64[Tensor, "steps batch"]]:
    """What a network learns between two matchings: the set as it is now, `rounds` times, in batches of at
    most 256; with DSA every batch is changed anew, one operation for it and strengths for each picture."""
    pictures, labels = synthetic.decoded().detach(), synthetic.labels()
    count, names = len(pictures), task.plan.augmentations or ()
    parts = -(-count // LESSON)
    if parts == 1 and not names:
        return pictures.expand(rounds, *pictures.shape), labels.expand(rounds, count)
    size = -(-count // parts)
    chosen: list[Tensor] = []
    for _ in range(rounds):
        order = torch.randperm(count, generator=generator)
        chosen += torch.cat([order, order[: parts * size - count]]).split(size)
    rows = torch.stack(chosen).to(pictures.device)
    changed = [draw_augmentation(names, size, generator)(pictures[own]) for own in rows]
    return torch.stack(changed), labels[rows]
