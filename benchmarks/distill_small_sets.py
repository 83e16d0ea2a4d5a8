"""Random against distilled pictures on one data set: bars D2 (mnist10k) and D3, D6, D7 (pneumoniamnist).

runs on: cpu (one thread, 16 x 16 pixels, ConvNet-3 of width 32; the same recipe and steps for every set).
Each line is several sets x networks; the peer row "plain" is gradient matching of the public recipe written
out in plain PyTorch, at the same number of iterations. Several runs may add to one file:

    python benchmarks/distill_small_sets.py --data mnist10k --images-per-class 1 --methods dm plain
    python benchmarks/distill_small_sets.py --join A.json B.json        adds the rows of other files

Every row has a figure on validation pictures (the data's own split, or a fifth of the training pictures that
nothing else sees), and `chosen` is the method that is best there: the test pictures choose nothing. A fresh
process gets each file and trains other networks (other seeds) on it.
"""
# bench: cpu, 30 min:

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from fewer.learn.data import load_images
from fewer.learn.distillation.architectures import NetworkPlan, build_network
from fewer.learn.distillation.audit import audit
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.indicator import set_aside
from fewer.learn.distillation.loop import distill
from fewer.learn.distillation.plan import DistillPlan
from fewer.learn.distillation.scores import (
    Score,
    TestPictures,
    pooled,
    resized,
    score_distilled,
    score_full,
    score_random,
    score_steadily,
)
from fewer.learn.distillation.task import Source
from fewer.learn.distillation.training import Recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "distill_small_sets.json"
AGAIN = """
import sys, torch
from fewer.learn.data import load_images
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.scores import score_distilled
torch.set_num_threads(1)
made, test = DistilledSet.load(sys.argv[1]), load_images(sys.argv[2]).evaluation()
print(score_distilled(made, test, seeds=tuple(range(1000, 1000 + int(sys.argv[3])))).balanced_accuracy)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist10k", choices=["mnist10k", "pneumoniamnist"])
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=["random", "dm", "plain"])
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number (seed) of the first set")
    parser.add_argument("--networks", type=int, default=3, help="0: as many as it takes, at most 20")
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full-steps", type=int, default=600)
    parser.add_argument("--real-batch", type=int, default=64)
    parser.add_argument("--steps", type=int, help="of the recipe, instead of epochs")
    parser.add_argument("--no-fresh-process", action="store_true")
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.join:
        join(options.join, options.output)
        return
    splits = load_images(ROOT / "data" / options.data / f"{options.data}.npz")
    learnt, validation = (splits.train, splits.validation)
    if validation is None:
        learnt, validation = set_aside(splits.train, 0.2)
    train, validation, test = (
        resized(one, (options.side, options.side)) for one in (learnt, validation, splits.test)
    )
    network, recipe = NetworkPlan(width=options.width), Recipe(epochs=options.epochs, steps=options.steps)
    device = torch.device(options.device)
    source = Source.of(train, device)
    model = build_network(network, 1, train.size, train.classes).to(device)
    judged, checked = (
        TestPictures.of(one, source.mean, source.deviation, device) for one in (test, validation)
    )
    seeds = tuple(range(options.networks or 5))
    facts = {"recipe": asdict(recipe), "torch": torch.__version__, "threads": 1, "side": options.side}
    facts |= {"python": platform.python_version(), "machine": platform.machine(), "width": options.width}
    for method in options.methods:
        began = time.time()
        if method == "random":
            score, known = (
                score_random(source, model, one, recipe, options.images_per_class, options.sets, seeds)
                for one in (judged, checked)
            )
            row = asdict(score) | {"validation": known.balanced_accuracy}
        elif method == "full":
            whole = replace(recipe, steps=options.full_steps)
            both = score_full(source, model, judged, whole, seeds)
            row = {name: asdict(one) for name, one in both.items()}
            score = both["balanced"]
        else:
            score, row = distilled_row(method, options, train, validation, test, network, recipe)
        settings = {name: v.name if isinstance(v, Path) else v for name, v in vars(options).items()}
        row |= {"seconds": time.time() - began, "options": settings}
        show(method, score, row["seconds"])
        keep(options.output, f"{options.data} {options.images_per_class}", method, row, facts)


def distilled_row(method, options, train, validation, test, network, recipe) -> tuple[Score, dict]:
    """Several sets by one method, each judged by several networks here and by others in a fresh process."""
    scores, checks, seconds, again, made = [], [], [], [], None
    seeds = tuple(range(options.networks or 5))
    for number in range(options.first, options.first + options.sets):
        began = time.time()
        made = make(method, train, options, network, number)
        seconds.append(time.time() - began)
        judge = partial(judged_by, made, test, network, recipe, options.device)
        scores.append(judge(seeds) if options.networks else score_steadily(judge))
        checks.append(judged_by(made, validation, network, recipe, options.device, seeds))
        if method != "plain":
            made = replace(made, datasheet=replace(made.datasheet, recipe=recipe))
            if not options.no_fresh_process:
                again.append(reproduced(made, options.data, scores[-1].runs))
    assert made is not None
    both = pooled(scores)
    means = [s.balanced_accuracy for s in scores]
    row = {**asdict(both), "validation": pooled(checks).balanced_accuracy, "seconds_per_set": seconds}
    row |= {"set_means": means, "fresh_process": again}
    row["fresh_process_points"] = [100 * (b - a) for a, b in zip(means, again, strict=False)]
    if options.audit:
        row["audit"] = audit(made, train, validation, networks=1).summary()
    return both, row


def judged_by(made, test, network, recipe: Recipe, device: str, seeds: tuple[int, ...]) -> Score:
    return score_distilled(made, test, network=network, recipe=recipe, seeds=seeds, device=device)


def keep(path: Path, key: str, method: str, row: dict, facts: dict) -> None:
    """Adds one row to the file at once: a run that is cut short loses nothing."""
    known = json.loads(path.read_text()) if path.exists() else {}
    entry = known.setdefault(key, {"sets": {}})
    entry |= facts
    entry["sets"][method] = row
    choose(entry)
    path.write_text(json.dumps(known, indent=1) + "\n")


def choose(entry: dict) -> None:
    """Names the distilling method of best validation."""
    found = {
        name: row["validation"]
        for name, row in entry["sets"].items()
        if name not in ("random", "full", "plain") and "validation" in row
    }
    if found:
        entry["chosen"] = max(found, key=lambda name: found[name])


def join(files: list[Path], path: Path) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    for file in files:
        for key, entry in json.loads(file.read_text()).items():
            rows = known.get(key, {}).get("sets", {}) | entry["sets"]
            known[key] = {**entry, "sets": rows}
            choose(known[key])
    path.write_text(json.dumps(known, indent=1) + "\n")


def show(name: str, score, seconds: float) -> None:
    print(
        f"{name:14} balanced {100 * score.balanced_accuracy:.1f} +- {100 * score.balanced_spread:.1f} "
        f"ACC {100 * score.accuracy:.1f} AUC {score.auc:.3f} runs {score.runs} {seconds:.0f} s",
        flush=True,
    )


def make(method: str, train, options, network: NetworkPlan, number: int) -> DistilledSet:
    """One set; `METHOD-real` and `METHOD-noise` name another start than the default."""
    name, _, start = method.partition("-")
    if name == "plain":
        return plain_gradient_matching(train, options, network, number)
    plan = DistillPlan(
        method=name,
        images_per_class=options.images_per_class,
        iterations=options.iterations,
        real_batch=options.real_batch,
        network=network,
        seed=number,
        start=start or None,
        outer_steps=min(10, options.images_per_class) if name in ("dc", "dsa", "idc") else None,
        inner_steps=5 if name in ("dc", "dsa", "idc") else None,
    )
    return distill(train, plan=plan, device=options.device)


def plain_gradient_matching(train, options, network: NetworkPlan, number: int) -> DistilledSet:
    """The peer: DC as its public code does it (one class after the other, autograd on a module)."""
    base = distill(train, options.images_per_class, "random", seed=number, plan=DistillPlan(network=network))
    source = Source.of(train, torch.device("cpu"))
    torch.manual_seed(number)
    pictures = torch.randn(
        options.images_per_class * train.classes, *source.images.shape[1:], requires_grad=True
    )
    labels = base.labels
    optimizer = torch.optim.SGD([pictures], lr=0.1, momentum=0.5)
    for _ in range(options.iterations):
        model = build_network(network, 1, train.size, train.classes)
        parameters, loss = list(model.parameters()), torch.zeros(())
        for label in range(train.classes):
            own = source.of_class(label)
            real = own[torch.randperm(len(own))[:64]]
            target = torch.autograd.grad(
                torch.nn.functional.cross_entropy(model(real), torch.full((len(real),), label)), parameters
            )
            rows = labels == label
            answer = torch.nn.functional.cross_entropy(model(pictures[rows]), labels[rows])
            found = torch.autograd.grad(answer, parameters, create_graph=True)
            for a, b in zip(found, target, strict=True):
                if a.ndim > 1:
                    a, b = a.flatten(1), b.flatten(1)
                    loss = loss + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pixels = pictures.detach() * source.deviation[:, None, None] + source.mean[:, None, None]
    return replace(base, images=(pixels.clamp(0, 1) * 255).round().to(torch.uint8))


def reproduced(made: DistilledSet, data: str, networks: int) -> float:
    """Balanced accuracy that a new process reaches with nothing but the file and the test data."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "set.distilled.safetensors"
        made.save(file)
        words = [
            sys.executable,
            "-c",
            AGAIN,
            str(file),
            str(ROOT / "data" / data / f"{data}.npz"),
            str(networks),
        ]
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
