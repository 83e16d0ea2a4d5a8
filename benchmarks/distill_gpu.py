"""Bars D4 and speed: pneumoniamnist at full width, all methods in one table, and seconds per iteration of
DC and MTT against the public recipe written in plain PyTorch, in the same run.

runs on: gpu (one H100, at most 10 minutes). `--device cpu --small` runs the same code on a CPU, to prove it.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fewer.learn.data import LabelledImages, load_images
from fewer.learn.distillation.architectures import NETWORK_POOL, NetworkPlan, build_network
from fewer.learn.distillation.loop import MATCHING, distill
from fewer.learn.distillation.plan import DistillPlan, TrajectoryPlan, resolve
from fewer.learn.distillation.scores import (
    TestPictures,
    resized,
    score_distilled,
    score_full,
    score_random,
)
from fewer.learn.distillation.start import starting_set
from fewer.learn.distillation.task import Source, Task
from fewer.learn.distillation.training import Recipe
from fewer.learn.distillation.trajectory import train_experts

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/distill_gpu.json")
    options = parser.parse_args()
    device, small = torch.device(options.device), options.small
    splits = load_images(ROOT / "data/pneumoniamnist/pneumoniamnist.npz")
    train, test = splits.train, splits.evaluation()
    if small:
        train, test = (resized(one.select(torch.arange(0, len(one), 8)), (16, 16)) for one in (train, test))
    network = NetworkPlan(width=16 if small else 128)
    trajectory = TrajectoryPlan()
    if small:
        trajectory = TrajectoryPlan(experts=2, epochs=2, student_steps=3, latest_start=1)
    recipe = Recipe(epochs=3 if small else 300)
    record = {"speed": speed(train, network, trajectory, device, 2 if small else 20)}
    print(json.dumps(record["speed"]), flush=True)
    source = Source.of(train, device)
    judged = TestPictures.of(test, source.mean, source.deviation, device)
    iterations = {"dc": 100, "dm": 1000, "ncfm": 1000, "mtt": 500}
    made, table = {}, {}
    for method, steps in iterations.items():
        plan = DistillPlan(
            method=method,
            images_per_class=10,
            iterations=2 if small else steps,
            network=network,
            trajectory=trajectory,
            outer_steps=2 if small else None,
        )
        began = time.time()
        made[method] = distill(train, plan=plan, device=options.device)
        table[method] = {"seconds": time.time() - began}
    best = "dm"
    for name in NETWORK_POOL:
        other = replace(network, name=name)
        model = build_network(other, train.channels, train.size, train.classes).to(device)
        random = score_random(source, model, judged, recipe, 10, 3, (0,))
        table.setdefault("random", {})[name] = random.as_dict()
        for method, one in made.items():
            score = score_distilled(one, test, network=other, recipe=recipe, seeds=(0, 1, 2), device=device)
            table[method][name] = score.as_dict()
    model = build_network(network, train.channels, train.size, train.classes).to(device)
    full = score_full(source, model, judged, replace(recipe, epochs=1 if small else 30), (0,))
    table["full"] = {name: score.as_dict() for name, score in full.items()}
    wins = [
        name
        for name in NETWORK_POOL
        if table[best][name]["balanced_accuracy"] > table["random"][name]["balanced_accuracy"]
    ]
    record |= {"table": table, "wins_of_dm_over_random": wins, "recipe": asdict(recipe), "small": small}
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    record |= {"device": card, "torch": torch.__version__}
    options.output.write_text(json.dumps(record, indent=1) + "\n")


def speed(
    train: LabelledImages,
    network: NetworkPlan,
    trajectory: TrajectoryPlan,
    device: torch.device,
    repeats: int,
) -> dict:
    """Median seconds of one matching loss with its step: ours, and the plain recipe."""
    found = {}
    for method in ("dc", "mtt"):
        plan = resolve(
            DistillPlan(
                method=method, images_per_class=10, network=network, trajectory=trajectory, outer_steps=1,
                augmentations=(),
            ),
            (),
        )  # fmt: skip
        task = Task.of(train, plan, device)
        if method == "mtt":
            short = replace(plan, trajectory=replace(trajectory, experts=2, epochs=3, latest_start=1))
            task = replace(task, plan=short)
            task = replace(task, trajectories=train_experts(task))
        synthetic = starting_set(task)
        optimizer = torch.optim.SGD([synthetic.images.requires_grad_()], lr=0.1)
        plain = _plain_gradient_step if method == "dc" else _plain_trajectory_step

        def ours(step: int, task=task, synthetic=synthetic, optimizer=optimizer, method=method) -> None:
            for loss in MATCHING[method](task, synthetic, step):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        def theirs(step: int, task=task, synthetic=synthetic, plain=plain) -> None:
            plain(task, synthetic.images, step)

        times = {"ours": _seconds(ours, device, repeats), "plain": _seconds(theirs, device, repeats)}
        medians = {name: sorted(each)[len(each) // 2] for name, each in times.items()}
        found[method] = {"raw": times, "ratio": medians["plain"] / medians["ours"]}
    return found


def _seconds(call, device: torch.device, repeats: int) -> list[float]:
    times = []
    for step in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        call(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return times[2:]


def _plain_gradient_step(task: Task, images: torch.Tensor, step: int) -> None:
    """DC's public recipe: a fresh module, one class after the other, autograd on its parameters."""
    source, network = task.source, task.plan.network
    model = build_network(network, images.shape[1], tuple(images.shape[2:]), source.classes).to(images.device)
    parameters, loss = list(model.parameters()), torch.zeros((), device=images.device)
    per_class = len(images) // source.classes
    for label in range(source.classes):
        own = source.of_class(label)
        real = own[torch.randperm(len(own), device=own.device)[: task.plan.real_batch]]
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
    torch.autograd.grad(loss, images)


def _plain_trajectory_step(task: Task, images: torch.Tensor, step: int) -> None:
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
    torch.autograd.grad(missed / journey, images)


if __name__ == "__main__":
    main()
