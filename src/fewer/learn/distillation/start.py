"""Where synthetic pictures start: noise, noised means of many real pictures, or real pictures."""

from __future__ import annotations

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.device import seeded
from fewer.learn.distillation.formation import encode
from fewer.learn.distillation.stacked import logits
from fewer.learn.distillation.task import Source, Synthetic, Task
from fewer.learn.distillation.trajectory import recorded, snapshot

logger = logging.getLogger(__name__)
MEAN_OF = 32
"""Real pictures averaged into one start: no single patient is left in it."""
JITTER = 0.1


def starting_set(task: Task) -> Synthetic:
    """The synthetic set before its first step, as the plan says; learnt labels and rate where the method
    has them.
    """
    plan, source = task.plan, task.source
    factor = plan.factor or 1
    shape = source.images.shape[1:]
    wanted = plan.images_per_class * factor**2
    generator = seeded(plan.seed, 501)
    if plan.start == "noise":
        images = torch.randn(plan.images_per_class * source.classes, *shape, generator=generator).to(
            task.device
        )
    else:
        if plan.start == "class-means":
            pictures = _class_means(source, wanted, generator)
        elif plan.method == "datm":
            pictures = _known(task, wanted, generator)
        else:
            pictures = _real(source, wanted, generator)
        images = encode(pictures, factor)
    synthetic = Synthetic(images.contiguous(), source.classes, factor)
    if plan.method in ("mtt", "datm"):
        synthetic.learning_rate = torch.tensor(plan.trajectory.learning_rate, device=task.device)
    if plan.method == "datm" and plan.soft_labels:
        synthetic.label_logits = _expert_logits(task, synthetic)
    return synthetic


def _class_means(source: Source, wanted: int, generator: torch.Generator) -> Float[Tensor, "m c h w"]:
    rows = torch.stack([source.rows(MEAN_OF, generator) for _ in range(wanted)], 1)
    means = source.images[rows.to(source.images.device)].mean(2).flatten(0, 1)
    return means + JITTER * torch.randn(means.shape, generator=generator).to(means.device)


def _real(source: Source, wanted: int, generator: torch.Generator) -> Float[Tensor, "m c h w"]:
    images = source.sample(wanted, generator)
    short = [label for label in range(source.classes) if source.count(label) < wanted]
    if short:
        logger.warning(
            "class %s has %d pictures, fewer than the %d to start from: some are repeated with jitter",
            source.called(short[0]), source.count(short[0]), wanted,
        )  # fmt: skip
        noise = JITTER * torch.randn(images.shape, generator=generator).to(images.device)
        mask = torch.zeros(source.classes, 1, 1, 1, 1, device=images.device)
        mask[short] = 1.0
        images = images + noise * mask
    return images.flatten(0, 1)


def _known(task: Task, wanted: int, generator: torch.Generator) -> Float[Tensor, "m c h w"]:
    """DATM: real pictures that a trained expert classifies rightly; of a class without enough of them any."""
    source, expert = task.source, snapshot(recorded(task), -1, 0)
    if any(source.count(label) < wanted for label in range(source.classes)):
        return _real(source, wanted, generator)
    with torch.no_grad():
        found = [logits(task.network, expert, part).argmax(1) for part in source.images.split(1024)]
    right = (torch.cat(found) == source.labels).cpu()
    chosen = []
    for label in range(source.classes):
        own = torch.arange(source.starts[label], source.starts[label + 1])
        known = own[right[own]]
        own = known if len(known) >= wanted else own
        chosen.append(own[torch.randperm(len(own), generator=generator)[:wanted]])
    return source.images[torch.cat(chosen).to(source.images.device)]


def _expert_logits(task: Task, synthetic: Synthetic) -> Float[Tensor, "m classes"]:
    """DATM starts its labels from an expert, pulled towards the true class where the expert is wrong."""
    with torch.no_grad():
        outputs = logits(task.network, snapshot(recorded(task), -1, 0), synthetic.decoded())
    labels = synthetic.labels()
    wrong = outputs.argmax(1) != labels
    truth = torch.nn.functional.one_hot(labels, synthetic.classes).to(outputs.dtype)
    return torch.where(wrong[:, None], 5.0 * truth, outputs)
