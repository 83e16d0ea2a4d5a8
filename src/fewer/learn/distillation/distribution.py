"""Distribution matching (DM, Zhao & Bilen 2023, equation 4) and IDM (Zhao et al. 2023): means of features.

No second derivatives and no inner training: the cheapest matching there is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.learn.distillation.stacked import Parameters, embedding
from fewer.learn.distillation.task import Synthetic, Task
from fewer.learn.distillation.trajectory import random_snapshot

CLASSIFICATION_WEIGHT = 0.5
"""Of IDM's cross-entropy term."""


def mean_distance(
    ours: Float[Tensor, "classes few features"], real: Float[Tensor, "classes many features"]
) -> Float[Tensor, ""]:
    """Sum over classes of the squared distance between the mean embeddings."""
    return (ours.mean(1) - real.mean(1)).square().sum()


def distribution_matching(task: Task, synthetic: Synthetic, step: int) -> Iterator[Tensor]:
    """DM: one loss of one fresh, never trained network."""

    def matching(ours: Tensor, parameters: Parameters, real: Tensor) -> Tensor:
        with torch.no_grad():
            target = embedding(task.network, parameters, real.flatten(0, 1)).unflatten(0, real.shape[:2])
        features = embedding(task.network, parameters, ours.flatten(0, 1)).unflatten(0, ours.shape[:2])
        return mean_distance(features, target)

    generator = task.generator(step)
    parameters = task.fresh_network(step)
    change = task.draw_augmentation(generator)
    real = change.on_classes(task.source.sample(task.plan.real_batch, generator))
    ours = change.on_classes(synthetic.by_class())
    yield task.graphs.loss("means", matching)(ours, parameters, real)


def improved_distribution_matching(task: Task, synthetic: Synthetic, step: int) -> Iterator[Tensor]:
    """IDM: DM through networks of many ages, with a cross-entropy term that keeps classes apart."""

    def matching(ours: Tensor, parameters: Parameters, real: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = embedding(task.network, parameters, real.flatten(0, 1)).unflatten(0, real.shape[:2])
        features = embedding(task.network, parameters, ours.flatten(0, 1))
        outputs = nn.functional.linear(features, parameters["head.weight"], parameters["head.bias"])
        classified = nn.functional.cross_entropy(outputs, labels)
        apart = mean_distance(features.unflatten(0, ours.shape[:2]), target)
        return apart + CLASSIFICATION_WEIGHT * classified

    generator = task.generator(step)
    parameters = random_snapshot(task, generator)
    change = task.draw_augmentation(generator)
    real = change.on_classes(task.source.sample(task.plan.real_batch, generator))
    ours = change.on_classes(synthetic.by_class())
    yield task.graphs.loss("means and classes", matching)(ours, parameters, real, synthetic.labels())
