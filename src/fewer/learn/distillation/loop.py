"""`distill`: start, then one loop in which a method is nothing but its matching loss.

    a plan → the real pictures by class → (experts, if the method learns from trained networks)
    → a starting set → iterations: each loss of the method moves the pictures one step
    → soft labels from a teacher, if wanted → a `DistilledSet` with its datasheet.

Every iteration is a pure function of (seed, iteration, pictures): a run that was stopped and resumed from a
checkpoint ends with the same bits as one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from fewer.core.config import validate
from fewer.core.device import pick_device, seeded
from fewer.core.errors import ConfigError, DataError
from fewer.core.progress import Progress, SilentProgress
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.augment import default_augmentations
from fewer.learn.distillation.characteristic import characteristic_matching
from fewer.learn.distillation.distilled_set import DistilledSet, package
from fewer.learn.distillation.distribution import distribution_matching, improved_distribution_matching
from fewer.learn.distillation.gradient import gradient_matching
from fewer.learn.distillation.inversion import invert
from fewer.learn.distillation.plan import SELECTIONS, DistillPlan, MethodName, resolve
from fewer.learn.distillation.private import PrivateMatching, noise_for, spent
from fewer.learn.distillation.resume import resume_run, save_run
from fewer.learn.distillation.selection import herding_rows, k_centre_rows, random_rows, telling_crops
from fewer.learn.distillation.stacked import embedding, fresh_parameters, logits
from fewer.learn.distillation.start import starting_set
from fewer.learn.distillation.task import Synthetic, Task
from fewer.learn.distillation.trajectory import recorded, snapshot, train_experts, trajectory_matching

logger = logging.getLogger(__name__)

Matching = Callable[[Task, Synthetic, int], Iterator[Tensor]]
MATCHING: dict[str, Matching] = {
    "dc": gradient_matching,
    "dsa": gradient_matching,
    "idc": gradient_matching,
    "dm": distribution_matching,
    "idm": improved_distribution_matching,
    "ncfm": characteristic_matching,
    "mtt": trajectory_matching,
    "datm": trajectory_matching,
}
NEEDS_EXPERTS = ("idm", "ncfm", "mtt", "datm", "rded")
PRIVATE_METHODS = ("dm", "dc", "dsa")
MOST_RETREATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where a run may leave checkpoints, and whether it starts from the newest."""

    checkpoint_folder: Path | None = None
    checkpoint_every: int = 50
    resume: bool = False
    units: Int64[Tensor, " n"] | None = None
    """Patient number of every training picture: the unit of differential privacy (default: the picture)."""


def distill(
    train: LabelledImages,
    images_per_class: int | None = None,
    method: MethodName | None = None,
    *,
    plan: DistillPlan | None = None,
    seed: int | None = None,
    device: str = "auto",
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> DistilledSet:
    """A small synthetic set (or, for the selections, a small real one) that trains almost as well as `train`.

    `images_per_class`, `method` and `seed` override the plan's. Raises `ConfigError` for a plan that cannot
    run, `DataError` for data that cannot be distilled (one class, a class without pictures, a selection
    larger
    than a class) or a loss that stays NaN.
    """
    given = {"images_per_class": images_per_class, "method": method, "seed": seed}
    plan = replace(
        plan or DistillPlan(), **{name: value for name, value in given.items() if value is not None}
    )
    train = train.labelled()
    smallest = min(train.counts().tolist(), default=0)
    plan = resolve(validate(DistillPlan, plan), default_augmentations(train.channels), smallest)
    progress, options = progress or SilentProgress(), options or RunOptions()
    _check(plan)
    task = Task.of(train, plan, pick_device(device))
    began = time.monotonic()
    if plan.method in NEEDS_EXPERTS or (plan.soft_labels and plan.method != "sre2l"):
        task = replace(task, trajectories=train_experts(_expert_task(task), progress, _expert_momentum(plan)))
    report, teacher, reached = None, None, 0
    if plan.method in SELECTIONS:
        synthetic = _select(task)
    elif plan.method == "sre2l":
        synthetic = starting_set(task)
        network = invert(task, synthetic, progress)
        teacher = network if plan.soft_labels else None
    else:
        matching = MATCHING[plan.method]
        if plan.privacy:
            private = _private(task, options)
            matching = private
        # A hash of the data is not a noised answer: under differential privacy no checkpoint holds one.
        known = options.checkpoint_folder is not None and plan.privacy is None
        pictures = train.fingerprint() if known else ""
        synthetic, reached = _match(task, matching, options, progress, pictures)
        if plan.privacy:
            unit = "image" if options.units is None else "patient"
            report = spent(plan.privacy, private.noise_multiplier, reached, unit)
    if plan.soft_labels and teacher is None:
        last = {name: value.clone() for name, value in snapshot(recorded(task), -1, 0).items()}
        teacher = partial(logits, task.network, last)
    soft = _soft_labels(synthetic, teacher)
    seconds = time.monotonic() - began
    return package(task, synthetic, train, soft, report, reached, seconds, teacher)


def _check(plan: DistillPlan) -> None:
    if plan.privacy and plan.method not in PRIVATE_METHODS:
        raise ConfigError(
            f"differential privacy is not available for {plan.method}; allowed: {', '.join(PRIVATE_METHODS)}"
        )
    if plan.privacy and plan.start != "noise":
        raise ConfigError(f"differential privacy starts from noise, not from {plan.start}; leave --start out")
    if plan.privacy and plan.soft_labels:
        raise ConfigError(
            "soft labels come from a teacher that saw every picture; not under differential privacy"
        )
    if plan.method == "sre2l" and plan.factor != 1:
        raise ConfigError("sre2l makes whole pictures; leave --factor out")
    if plan.method in ("random", "herding", "k-centre") and plan.factor != 1:
        raise ConfigError(f"{plan.method} picks whole pictures; leave --factor out")
    experts = plan.trajectory
    if plan.method in ("mtt", "datm") and experts.expert_steps > experts.epochs:
        raise ConfigError(
            f"{experts.expert_steps} expert steps do not fit into {experts.epochs} expert epochs"
        )


def _expert_task(task: Task) -> Task:
    """Teachers and extractors need one trained network; the trajectory methods as many as planned."""
    if task.plan.method in ("mtt", "datm", "idm", "ncfm"):
        return task
    trajectory = replace(task.plan.trajectory, experts=1)
    return replace(task, plan=replace(task.plan, trajectory=trajectory))


def _expert_momentum(plan: DistillPlan) -> float:
    """MTT's experts have none, so that plain student steps can follow; teachers and extractors learn
    faster with.
    """
    return 0.0 if plan.method in ("mtt", "datm") else 0.9


def _select(task: Task) -> Synthetic:
    plan, source = task.plan, task.source
    if plan.method == "rded":
        return telling_crops(task)
    if plan.method == "random":
        rows = random_rows(source, plan.images_per_class, plan.seed)
    else:
        parameters = fresh_parameters(task.network, seeded(plan.seed, 403), task.device)
        with torch.no_grad():
            parts = [embedding(task.network, parameters, part) for part in source.images.split(1024)]
        choose = herding_rows if plan.method == "herding" else k_centre_rows
        rows = choose(source, torch.cat(parts), plan.images_per_class)
    return Synthetic(source.images[rows.to(source.images.device)].clone(), source.classes)


def _match(
    task: Task, matching: Matching, options: RunOptions, progress: Progress, pictures: str
) -> tuple[Synthetic, int]:
    """The loop. Returns the learnt set and the iterations done. `pictures`: the data's fingerprint."""
    plan, folder = task.plan, options.checkpoint_folder
    synthetic = starting_set(task)
    optimizers = _optimizers(task, synthetic)
    first = resume_run(folder, synthetic, optimizers, plan, pictures) if options.resume else 0
    total = plan.iterations or 1
    deadline = time.monotonic() + plan.seconds if plan.seconds else None
    progress.start(f"distil with {plan.method}", total)
    progress.advance(first)
    step, retreats = first, 0
    while step < total:
        if deadline and time.monotonic() > deadline:
            progress.say(f"stopped after {step} of {total} iterations: the time is used up")
            break
        saved = {name: value.detach().clone() for name, value in synthetic.learnt().items()}
        loss = _one_iteration(task, synthetic, matching, optimizers, step)
        if loss is None:
            # MTT may blow up on medical pictures: go back and take smaller steps, rather than give NaN.
            retreats += 1
            step += plan.privacy is not None  # what was asked of the real pictures is spent
            if retreats > MOST_RETREATS:
                raise DataError(
                    f"{plan.method}: the loss is NaN at iteration {step}; try a smaller --learning-rate"
                )
            _retreat(synthetic, saved, optimizers)
            continue
        step += 1
        progress.advance(loss=loss)
        if folder and (step % options.checkpoint_every == 0 or step == total):
            save_run(folder, synthetic, optimizers, plan, step, pictures)
    if folder and step < total:
        save_run(folder, synthetic, optimizers, plan, step, pictures)
    progress.stop()
    for name, value in synthetic.learnt().items():
        setattr(synthetic, name, value.detach())
    return synthetic, step


def _one_iteration(
    task: Task,
    synthetic: Synthetic,
    matching: Matching,
    optimizers: list[torch.optim.Optimizer],
    step: int,
) -> float | None:
    """All losses of one iteration; None as soon as one of them or a picture is not finite."""
    total = 0.0
    for loss in matching(task, synthetic, step):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if synthetic.learning_rate is not None:
            with torch.no_grad():
                synthetic.learning_rate.clamp_(min=1e-4)
        value = float(loss.detach())
        if not torch.isfinite(loss) or not torch.isfinite(synthetic.images).all():
            return None
        total += value
    return total


def _optimizers(task: Task, synthetic: Synthetic) -> list[torch.optim.Optimizer]:
    plan = task.plan
    rate = plan.learning_rate or 0.1
    images = synthetic.images.requires_grad_()
    if plan.method == "ncfm":
        found: list[torch.optim.Optimizer] = [torch.optim.AdamW([images], lr=rate, weight_decay=0.0)]
    else:
        found = [torch.optim.SGD([images], lr=rate, momentum=0.5)]
    if synthetic.learning_rate is not None:
        found.append(torch.optim.SGD([synthetic.learning_rate.requires_grad_()], lr=1e-5, momentum=0.5))
    if synthetic.label_logits is not None:
        found.append(torch.optim.SGD([synthetic.label_logits.requires_grad_()], lr=2.0, momentum=0.9))
    return found


def _retreat(synthetic: Synthetic, saved: dict[str, Tensor], optimizers: list[torch.optim.Optimizer]) -> None:
    with torch.no_grad():
        for name, value in synthetic.learnt().items():
            value.copy_(saved[name])
    for optimizer in optimizers:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] *= 0.1


def _private(task: Task, options: RunOptions) -> PrivateMatching:
    assert task.plan.privacy is not None
    count = len(task.source.images)
    units = torch.arange(count)
    if options.units is not None:
        if len(options.units) != count:
            raise ConfigError(f"{len(options.units)} patient numbers for {count} pictures")
        _, units = torch.unique(options.units[task.source.order], return_inverse=True)
    protected, delta = int(units.max()) + 1, task.plan.privacy.delta
    if delta * protected >= 1:
        raise ConfigError(
            f"delta is {delta:g}; below 1 / {protected:,} is needed, the number of pictures or patients: a "
            "larger one allows that somebody is given away whole"
        )
    return PrivateMatching(noise_for(task.plan.privacy, task.plan.iterations or 1), units)


def _soft_labels(synthetic: Synthetic, teacher: Callable[[Tensor], Tensor] | None) -> Tensor | None:
    """(m, classes) probabilities for the decoded pictures, or None."""
    if synthetic.label_logits is not None:
        return synthetic.label_logits.detach().softmax(1)
    if teacher is None:
        return None
    with torch.no_grad():
        return teacher(synthetic.decoded()).softmax(1)
