"""Training on a set, the same recipe for every set that is compared (DC's evaluation): SGD 0.01, momentum
0.9, weight decay 5e-4, batch 256, 300 epochs, the rate divided by ten after half; the last epoch counts.

Networks are trained side by side as one stack (see `stacked`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int64, Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.progress import Progress, SilentProgress
from fewer.learn.distillation.architectures import Classifier
from fewer.learn.distillation.augment import OperationName, draw_augmentation
from fewer.learn.distillation.stacked import (
    Parameters,
    fresh_parameters,
    gradients,
    logits,
    member,
    over_stack,
    stack,
    stack_size,
)
from fewer.learn.graphed import Graphs


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained on a set; written into every file, so that a figure can be reached again."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    steps: Annotated[int, Field(ge=1)] | None = None
    """Exactly so many steps instead of epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 256
    augmentations: tuple[OperationName, ...] = ()
    balanced: bool = False
    """Draw every class equally often, whatever its share."""


def train_networks(
    network: Classifier,
    images: Float[Tensor, "n channels height width"],
    labels: Shaped[Tensor, " n ..."],
    recipe: Recipe,
    seeds: tuple[int, ...],
    progress: Progress | None = None,
    graphs: Graphs | None = None,
) -> Parameters:
    """One network per seed, trained from scratch, stacked.

    `labels` are class numbers (n,) or class probabilities (n, classes). With `graphs`, what was recorded for
    the same network and recipe is used again.
    """
    progress = progress or SilentProgress()
    device = images.device
    stacked = stack([fresh_parameters(network, seeded(seed, 201), device) for seed in seeds])
    velocity = {name: torch.zeros_like(value) for name, value in stacked.items()}
    batch = min(recipe.batch_size, len(images))
    per_epoch = -(-len(images) // batch)
    steps = recipe.steps or recipe.epochs * per_epoch

    def one(parameters: Parameters, pictures: Tensor, targets: Tensor) -> Parameters:
        return gradients(network, parameters, pictures, targets)

    def step_of(
        values: Parameters, speeds: Parameters, pictures: Tensor, targets: Tensor, rate: Tensor
    ) -> tuple[Parameters, Parameters]:
        slopes = over_stack(one, values, pictures, targets)
        momentum_step(values, slopes, speeds, rate, recipe.momentum, recipe.weight_decay)
        return values, speeds

    kind = f"train {id(network)} {recipe.momentum} {recipe.weight_decay}"
    graphed = (graphs or Graphs()).function(kind, step_of)
    progress.start("train on the set", steps)
    orders: list[Tensor] = []
    for step in range(steps):
        if step % per_epoch == 0:
            orders = [_order(labels, recipe, batch * per_epoch, seed, step) for seed in seeds]
        position = step % per_epoch * batch
        rows = torch.stack([order[position : position + batch] for order in orders]).to(device)
        pictures = images[rows]
        if recipe.augmentations:
            generator = seeded(seeds[0], 203, step)
            change = draw_augmentation(recipe.augmentations, rows.numel(), generator)
            pictures = change(pictures.flatten(0, 1)).unflatten(0, rows.shape)
        rate = torch.tensor(recipe.learning_rate * (1.0 if step < (steps + 1) // 2 else 0.1))
        stacked, velocity = graphed(stacked, velocity, pictures, labels[rows], rate)
        progress.advance()
    progress.stop()
    return {name: value.clone() for name, value in stacked.items()}


def momentum_step(
    values: Parameters,
    slopes: Parameters,
    velocity: Parameters,
    rate: float | Float[Tensor, ""],
    momentum: float,
    decay: float,
) -> None:
    """torch.optim.SGD's update, in place, on dictionaries; a tensor as rate may change between replays."""
    names = list(values)
    own, speeds, given = ([one[name] for name in names] for one in (values, velocity, slopes))
    # All tensors at once: on a GPU five launches instead of five for each.
    torch._foreach_mul_(speeds, momentum)
    torch._foreach_add_(speeds, given)
    if decay:
        torch._foreach_add_(speeds, own, alpha=decay)
    torch._foreach_sub_(own, torch._foreach_mul(speeds, rate))


def descend(
    network: Classifier,
    parameters: Parameters,
    images: Float[Tensor, "steps batch channels height width"],
    labels: Int64[Tensor, "steps batch"],
    learning_rate: float,
) -> Parameters:
    """Gradient steps of one network, each on a batch of its own: DC's inner loop (SGD without momentum)."""
    moved = {name: value.clone() for name, value in parameters.items()}
    for pictures, targets in zip(images, labels, strict=True):
        slopes = gradients(network, moved, pictures, targets)
        torch._foreach_add_(list(moved.values()), [slopes[name] for name in moved], alpha=-learning_rate)
    return moved


def probabilities(
    network: Classifier,
    stacked: Parameters,
    images: Float[Tensor, "n channels height width"],
    batch: int = 1024,
) -> Float[Tensor, "networks n classes"]:
    """What every network of the stack believes of every picture, on the pictures' device."""
    answers = []
    with torch.no_grad():
        for index in range(stack_size(stacked)):
            own = member(stacked, index)
            parts = [logits(network, own, images[at : at + batch]) for at in range(0, len(images), batch)]
            answers.append(torch.cat(parts).softmax(1))
    return torch.stack(answers)


def _order(labels: Tensor, recipe: Recipe, wanted: int, seed: int, step: int) -> Int64[Tensor, " wanted"]:
    """Row numbers of one epoch, filled up to whole batches."""
    generator = seeded(seed, 202, step)
    if recipe.balanced:
        numbers = labels.cpu() if labels.ndim == 1 else labels.argmax(1).cpu()
        weights = 1.0 / torch.bincount(numbers).clamp(min=1).double()
        return torch.multinomial(weights[numbers], wanted, replacement=True, generator=generator)
    order = torch.randperm(len(labels), generator=generator)
    return torch.cat([order, order[: wanted - len(order)]])
