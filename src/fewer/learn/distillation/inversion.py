"""SRe2L (Yin, Xing & Shen 2023): pictures that a trained network recognises and whose batch-norm statistics
look like the real set's. One optimisation without a bilevel loop; made for 64 pixels and more.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fewer.core.device import isolated_randomness, seeded
from fewer.core.progress import Progress, SilentProgress
from fewer.learn.distillation.architectures import Classifier, NetworkPlan, build_network
from fewer.learn.distillation.task import Source, Synthetic, Task

STATISTICS_WEIGHT = 0.01
"""Of the batch-norm term, per layer (the reference code's r_bn)."""


def train_batch_norm_teacher(
    source: Source, plan: NetworkPlan, epochs: int, seed: int, device: torch.device
) -> Classifier:
    """A network of the plan with batch norm, trained on the real set (SGD 0.01, momentum 0.9)."""
    from dataclasses import replace

    with isolated_randomness(seed):
        channels, height, width = source.images.shape[1:]
        network = build_network(replace(plan, norm="batch"), channels, (height, width), source.classes)
    network = network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        order = torch.randperm(len(source.images), generator=seeded(seed, 601, epoch))
        for rows in order.split(256):
            if len(rows) < 2:
                continue
            rows = rows.to(device)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(source.images[rows]), source.labels[rows]).backward()
            optimizer.step()
    return network.eval()


def inversion_loss(
    network: Classifier, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Cross-entropy plus the distance between the batch's statistics and every batch norm's running ones."""
    terms: list[Tensor] = []

    def compare(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)
        assert layer.running_mean is not None and layer.running_var is not None
        terms.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())

    handles = [
        layer.register_forward_hook(compare)
        for layer in network.modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    try:
        loss = nn.functional.cross_entropy(network(images), labels)
    finally:
        for handle in handles:
            handle.remove()
    return loss + STATISTICS_WEIGHT * torch.stack(terms).sum()


def invert(task: Task, synthetic: Synthetic, progress: Progress | None = None) -> Classifier:
    """Moves the pictures of `synthetic` in place (Adam, cosine rate); returns the teacher for soft labels."""
    progress = progress or SilentProgress()
    plan = task.plan
    teacher = train_batch_norm_teacher(
        task.source, plan.network, plan.trajectory.epochs, plan.seed, task.device
    )
    teacher.requires_grad_(False)
    pictures = synthetic.images.detach().requires_grad_()
    rate, steps = plan.learning_rate or 0.1, plan.iterations or 1000
    optimizer = torch.optim.Adam([pictures], lr=rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress.start("invert", steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = inversion_loss(teacher, pictures, synthetic.labels())
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.advance(loss=float(loss.detach()))
    progress.stop()
    synthetic.images = pictures.detach()
    return teacher
