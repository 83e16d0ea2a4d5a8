"""DC's and MTT's public recipes written plainly in PyTorch, for the comparison of speed in distill_gpu.py."""

import torch
from torch.nn.functional import cross_entropy

from fewer.learn.distillation.architectures import build_network
from fewer.learn.distillation.task import Task


def gradient_iteration(task: Task, images: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """DC's public recipe: a fresh module, one class after the other, autograd on its parameters, and the
    network's steps on the set between two matchings."""
    source, plan = task.source, task.plan
    channels, size = images.shape[1], (images.shape[2], images.shape[3])
    model = build_network(plan.network, channels, size, source.classes).to(images.device)
    parameters, per_class = list(model.parameters()), len(images) // source.classes
    descent = torch.optim.SGD(parameters, lr=plan.network_learning_rate)
    targets = torch.arange(source.classes, device=images.device).repeat_interleave(per_class)
    outer_steps, inner_steps = plan.outer_steps or 1, plan.inner_steps or 1
    for outer in range(outer_steps):
        loss = torch.zeros((), device=images.device)
        for label in range(source.classes):
            own = source.of_class(label)
            real = own[torch.randperm(len(own), device=own.device)[: plan.real_batch]]
            labels = torch.full((len(real),), label, device=images.device)
            target = [g.detach() for g in torch.autograd.grad(cross_entropy(model(real), labels), parameters)]
            ours = images[label * per_class : (label + 1) * per_class]
            found = torch.autograd.grad(
                cross_entropy(model(ours), labels[:1].expand(per_class)), parameters, create_graph=True
            )
            for a, b in zip(found, target, strict=True):
                if a.ndim > 1:
                    a, b = a.flatten(1), b.flatten(1)
                    loss = loss + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if outer + 1 < outer_steps:
            for _ in range(inner_steps):
                descent.zero_grad()
                cross_entropy(model(images.detach()), targets).backward()
                descent.step()


def trajectory_iteration(task: Task, images: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """MTT's public recipe: a functional student, unrolled with autograd."""
    assert task.trajectories is not None
    names = list(task.trajectories)
    student = [task.trajectories[name][0, 0].clone().requires_grad_() for name in names]
    goal = [task.trajectories[name][2, 0] for name in names]
    start = [value.detach().clone() for value in student]
    labels = torch.arange(task.source.classes, device=images.device).repeat_interleave(
        len(images) // task.source.classes
    )
    for _ in range(task.plan.trajectory.student_steps):
        outputs = torch.func.functional_call(task.network, dict(zip(names, student, strict=True)), (images,))
        slopes = torch.autograd.grad(cross_entropy(outputs, labels), student, create_graph=True)
        student = [value - 0.01 * slope for value, slope in zip(student, slopes, strict=True)]
    missed = sum((a - b).square().sum() for a, b in zip(student, goal, strict=True))
    journey = sum((a - b).square().sum() for a, b in zip(start, goal, strict=True))
    optimizer.zero_grad()
    (missed / journey).backward()
    optimizer.step()
