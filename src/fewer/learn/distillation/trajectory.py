"""Trajectory matching (MTT, Cazenavette et al. 2022, equation 2; DATM, Guo et al. 2024).

Experts are trained on the real set, their parameters kept after every epoch. A student starts at an expert's
epoch t, takes N steps on the synthetic set, and must arrive where the expert was at epoch t + M. The same
recorded networks serve IDM and NCFM as extractors, RDED and soft labels as teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import vmap

from fewer.core.device import seeded
from fewer.core.progress import Progress, SilentProgress
from fewer.learn.distillation.augment import draw_augmentation
from fewer.learn.distillation.stacked import (
    Parameters,
    fresh_parameters,
    gradients,
    over_stack,
    stack,
)
from fewer.learn.distillation.task import Synthetic, Task
from fewer.learn.distillation.training import momentum_step
from fewer.learn.graphed import GraphedFunction

Trajectories = dict[str, Tensor]
"""Name of a parameter -> (epochs + 1, experts, …)."""


def train_experts(task: Task, progress: Progress | None = None, momentum: float = 0.0) -> Trajectories:
    """All experts side by side on the real set (SGD, batch 256, siamese augmentation), every epoch kept.

    The expert's start, order and augmentation are functions of the plan's seed alone.
    """
    progress = progress or SilentProgress()
    plan, source = task.plan.trajectory, task.source
    stacked = stack(
        [
            fresh_parameters(task.network, seeded(task.plan.seed, 301, e), task.device)
            for e in range(plan.experts)
        ]
    )
    velocity = {name: torch.zeros_like(value) for name, value in stacked.items()}
    kept = [{name: value.clone() for name, value in stacked.items()}]
    batch = min(256, len(source.images))
    rate = torch.tensor(plan.learning_rate, device=task.device)
    step = GraphedFunction(_expert_step(task, momentum))
    progress.start("train experts", plan.epochs)
    for epoch in range(plan.epochs):
        orders = torch.stack(
            [_order(task, seeded(task.plan.seed, 302, epoch, expert)) for expert in range(plan.experts)]
        )
        for position in range(0, len(source.images) - batch + 1, batch):
            rows = orders[:, position : position + batch].to(task.device)
            generator = seeded(task.plan.seed, 303, epoch, position)
            change = draw_augmentation(task.plan.augmentations or (), rows.numel(), generator)
            pictures = change(source.images[rows.flatten()]).unflatten(0, rows.shape)
            stacked, velocity = step(stacked, velocity, pictures, source.labels[rows], rate)
        kept.append({name: value.clone() for name, value in stacked.items()})
        progress.advance()
    progress.stop()
    return {name: torch.stack([epoch[name] for epoch in kept]) for name in stacked}


def _order(task: Task, generator: torch.Generator) -> Int64[Tensor, " n"]:
    """Rows of one epoch of an expert."""
    source = task.source
    if not task.plan.trajectory.balanced:
        return torch.randperm(len(source.images), generator=generator)
    # Classes in turn: every batch holds each equally often, pictures of small classes come again.
    each = -(-len(source.images) // source.classes)
    rows = []
    for label in range(source.classes):
        count = source.count(label)
        rounds = [torch.randperm(count, generator=generator) for _ in range(-(-each // count))]
        rows.append(torch.cat(rounds)[:each] + source.starts[label])
    return torch.stack(rows, 1).flatten()[: len(source.images)]


def _expert_step(task: Task, momentum: float) -> Callable[..., tuple[Parameters, Parameters]]:
    def one(parameters: Parameters, pictures: Tensor, targets: Tensor) -> Parameters:
        return gradients(task.network, parameters, pictures, targets)

    def step(
        stacked: Parameters, velocity: Parameters, pictures: Tensor, labels: Tensor, rate: Tensor
    ) -> tuple[Parameters, Parameters]:
        slopes = over_stack(one, stacked, pictures, labels, batched=task.batched)
        momentum_step(stacked, slopes, velocity, rate, momentum, 0.0)
        return stacked, velocity

    return step


def snapshot(trajectories: Trajectories, epoch: int, expert: int) -> Parameters:
    """The parameters of one expert after `epoch` epochs (negative: from the end)."""
    return {name: value[epoch, expert] for name, value in trajectories.items()}


def random_snapshot(task: Task, generator: torch.Generator, oldest: bool = False) -> Parameters:
    """A recorded network of random age, or (oldest) fully trained."""
    epochs, experts = next(iter(recorded(task).values())).shape[:2]
    expert = int(torch.randint(experts, (1,), generator=generator))
    epoch = epochs - 1 if oldest else int(torch.randint(epochs, (1,), generator=generator))
    return snapshot(recorded(task), epoch, expert)


def recorded(task: Task) -> Trajectories:
    assert task.trajectories is not None, "this method needs experts: loop.distill trains them first"
    return task.trajectories


def trajectory_distance(arrived: Parameters, wanted: Parameters, started: Parameters) -> Float[Tensor, ""]:
    """||arrived - wanted||² / ||started - wanted||²: 1 for a student that never moved."""
    missed = torch.stack([(arrived[name] - wanted[name]).square().sum() for name in wanted]).sum()
    journey = torch.stack([(started[name] - wanted[name]).square().sum() for name in wanted]).sum()
    return missed / journey.clamp(min=1e-12)


def latest_start(task: Task, step: int) -> int:
    """MTT: constant. DATM: grows from half to the whole over the first tenth of the run."""
    plan = task.plan
    last = min(plan.trajectory.latest_start, plan.trajectory.epochs - plan.trajectory.expert_steps + 1)
    if plan.method != "datm":
        return max(1, last)
    share = min(1.0, 0.5 + 0.5 * step / max(1, (plan.iterations or 1) / 10))
    return max(1, round(last * share))


def trajectory_matching(task: Task, synthetic: Synthetic, step: int) -> Iterator[Tensor]:
    """One loss: the mean over `students` experts, each from its own epoch."""
    generator = task.generator(step)
    plan, trajectories = task.plan.trajectory, recorded(task)

    def matching(
        images: Tensor, labels: Tensor, rate: Tensor, started: Parameters, wanted: Parameters
    ) -> Tensor:
        def loss_of(start: Parameters, goal: Parameters) -> Tensor:
            student = start
            for own, targets in zip(images, labels, strict=True):
                slopes = gradients(task.network, student, own, targets)
                student = {name: value - rate * slopes[name] for name, value in student.items()}
            return trajectory_distance(student, goal, start)

        if plan.students == 1:
            return loss_of({k: v[0] for k, v in started.items()}, {k: v[0] for k, v in wanted.items()})
        return vmap(loss_of)(started, wanted).mean()

    experts = next(iter(trajectories.values())).shape[1]
    who = torch.randint(experts, (plan.students,), generator=generator)
    when = torch.randint(latest_start(task, step), (plan.students,), generator=generator)
    later = (when + plan.expert_steps).clamp(max=plan.epochs)
    started = {name: value[when, who] for name, value in trajectories.items()}
    wanted = {name: value[later, who] for name, value in trajectories.items()}
    pictures, targets = synthetic.decoded(), synthetic.targets()
    batches = _batches(len(pictures), plan.student_batch, plan.student_steps, generator)
    changes = [
        draw_augmentation(task.plan.augmentations or (), 1, generator) for _ in range(plan.student_steps)
    ]
    chosen = [(pictures, targets) if rows is None else (pictures[rows], targets[rows]) for rows in batches]
    # As one tensor each: changed colour pictures lie in memory by rows or by channels, and as N inputs they
    # would have a graph, with its memory, for each of the 2^N combinations.
    images = torch.stack([change(one) for change, (one, _) in zip(changes, chosen, strict=True)])
    labels = torch.stack([one for _, one in chosen])
    rate = synthetic.learning_rate
    if rate is None:
        rate = torch.tensor(plan.learning_rate, device=pictures.device)
    yield task.graphs.loss("trajectories", matching)(images, labels, rate, started, wanted)


def _batches(
    count: int, size: int, steps: int, generator: torch.Generator
) -> list[Int64[Tensor, " rows"] | None]:
    """Row numbers of each step; None stands for all."""
    if size >= count:
        return [None] * steps
    return [torch.randperm(count, generator=generator)[:size] for _ in range(steps)]
