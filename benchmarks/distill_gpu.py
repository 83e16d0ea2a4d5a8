"""Bars D4 and speed: pneumoniamnist at full width, all methods in one table, and seconds per iteration of
DC and MTT against the public recipe written in plain PyTorch, in the same run.

runs on: gpu (one H100, at most 10 minutes). `--device cpu --small` runs the same code on a CPU, to prove it.

    python benchmarks/distill_gpu.py [--parts speed table]
    python benchmarks/distill_gpu.py --parts table --methods mtt dc     adds rows; may run beside others
    python benchmarks/distill_gpu.py --parts table --images-per-class 50 --networks convnet
    python benchmarks/distill_gpu.py --join A.json B.json              one table of several files

An iteration of DC at ten images per class is ten matchings and, between them, fifty steps of the network on
the set, as published; `matching` is one of the ten alone. The validation split chooses which method speaks
for the distilled sets; test pictures choose nothing.
"""
# bench: gpu, 10 min:

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from distill_plain import gradient_iteration, trajectory_iteration

from fewer.learn.data import ImageSplits, load_images, make_labelled_images
from fewer.learn.distillation.architectures import NETWORK_POOL, NetworkPlan, build_network
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.loop import MATCHING, distill
from fewer.learn.distillation.plan import DistillPlan, TrajectoryPlan, resolve
from fewer.learn.distillation.scores import (
    Score,
    TestPictures,
    pooled,
    resized,
    score_full,
    score_random,
    score_training,
)
from fewer.learn.distillation.start import starting_set
from fewer.learn.distillation.task import Source, Task
from fewer.learn.distillation.training import Recipe
from fewer.learn.distillation.trajectory import train_experts
from fewer.learn.graphed import GraphedFunction, Graphs

ROOT = Path(__file__).parents[1]
ITERATIONS = {"dm": 1000, "dm-real": 1000, "ncfm": 1000, "mtt": 300, "mtt-balanced": 300, "dc": 50}
CONTROLS = ("random", "full")
PEER_OF = {"dc": gradient_iteration, "mtt": trajectory_iteration}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", nargs="+", default=["speed", "table"], choices=["speed", "table"])
    rows = [*CONTROLS, *ITERATIONS]
    usual = [name for name in rows if name != "mtt-balanced"]
    parser.add_argument("--methods", nargs="+", default=usual, choices=rows)
    parser.add_argument("--images-per-class", type=int, default=10)
    parser.add_argument("--real-batch", type=int, default=256, help="of the measured table; ncfm's own: 1024")
    parser.add_argument("--networks", nargs="+", default=list(NETWORK_POOL), choices=list(NETWORK_POOL))
    parser.add_argument("--sets", type=int, default=3, help="distilled sets of each method")
    parser.add_argument("--iterations", nargs="+", default=[], help="METHOD=N, where not those of ITERATIONS")
    parser.add_argument("--seconds", type=float, default=1e9, help="no further set begins after so many")
    parser.add_argument("--only", default="", help="speed: of this method alone, graphs against the peer")
    parser.add_argument("--noise", action="store_true", help="speed: pictures of noise, as many and as large")
    parser.add_argument("--join", type=Path, nargs="+", default=[])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/distill_gpu.json")
    options = parser.parse_args()
    known = json.loads(options.output.read_text()) if options.output.exists() else {}
    if options.join:
        for file in options.join:
            for part, found in json.loads(file.read_text()).items():
                known[part] = merged(known.get(part, {}), found)
        options.output.write_text(json.dumps(known, indent=1) + "\n")
        print(json.dumps(known["table"]["wins_over_random"]), known["table"]["chosen_by_validation"])
        return
    device = torch.device(options.device)
    splits = noise() if options.noise else load_images(ROOT / "data/pneumoniamnist/pneumoniamnist.npz")
    assert splits.validation is not None
    assert splits.test is not None
    if options.small:
        parts = (splits.train, splits.validation, splits.test)
        small = (resized(one.select(torch.arange(0, len(one), 8)), (16, 16)) for one in parts)
        splits = ImageSplits(*small)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    facts = {"device": card, "torch": torch.__version__, "small": options.small}
    for part in options.parts:
        began = time.time()
        for found in speed(splits, device, options) if part == "speed" else table(splits, device, options):
            key = (
                part
                if part == "speed" or options.images_per_class == 10
                else f"{part} {options.images_per_class}"
            )
            known[key] = merged(known.get(key, {}), facts | {"wall_seconds": time.time() - began} | found)
            options.output.write_text(json.dumps(known, indent=1) + "\n")


def noise() -> ImageSplits:
    """Stands for pneumoniamnist where only time counts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5856, 28, 28), generator=generator, dtype=torch.uint8)
    whole = make_labelled_images(images, torch.randint(2, (5856,), generator=generator))
    return ImageSplits(
        whole.select(range(4708)), whole.select(range(4708, 5232)), whole.select(range(5232, 5856))
    )


def merged(known: dict, found: dict) -> dict:
    """Dictionaries joined to the second level, rows of the table to the third, so that networks may be
    added to a row; what the table says as a whole is reckoned anew."""
    result = dict(known)
    for name, value in found.items():
        old = result.get(name)
        if name == "wall_seconds" and old is not None:
            value = max(old, value)
        if name == "table" and old is not None:
            value = {method: {**old.get(method, {}), **row} for method, row in value.items()}
        result[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    rows, validation = result.get("table", {}), result.get("validation", {})
    if "random" in rows:
        made = [name for name in rows if name not in CONTROLS]
        result["wins_over_random"] = {
            method: [
                name
                for name in NETWORK_POOL
                if name in rows[method]
                and name in rows["random"]
                and rows[method][name]["balanced_accuracy"] > rows["random"][name]["balanced_accuracy"]
            ]
            for method in made
        }
        seen = [name for name in made if name in validation]
        if seen:
            result["chosen_by_validation"] = max(seen, key=lambda m: validation[m]["balanced_accuracy"])
    return result


def table(splits: ImageSplits, device: torch.device, options: argparse.Namespace) -> Iterator[dict]:
    """All methods on ConvNet-3, every network trained on what they made, on random pictures and on all.

    Round by round: one set of every method, scored on all networks, then the next. Yields what it has after
    every step, so that a run that is cut short loses nothing; no round begins after `--seconds`.
    """
    began, small, networks = time.time(), options.small, NetworkPlan(width=16 if options.small else 128)
    judge = Judge(splits, networks, Recipe(epochs=3 if small else 300), device, options.images_per_class)
    rows: dict[str, dict] = {name: {} for name in options.methods}
    found: dict[str, object] = {"table": rows, "validation": judge.validation, "recipe": asdict(judge.recipe)}
    found["images_per_class"] = options.images_per_class
    made = [name for name in ITERATIONS if name in options.methods]
    if "random" in rows:
        for name in options.networks:
            judge.random(name, rows["random"])
            yield found
    if "full" in rows:
        rows["full"] |= judge.full(1 if small else 40)
        yield found
    for number in range(options.sets):
        if number and time.time() - began > options.seconds:
            break
        sets = {}
        for name in made:
            start = time.time()
            sets[name] = make(name, splits, number, options)
            rows[name].setdefault("seconds", []).append(time.time() - start)
            rows[name]["iterations"] = iterations_of(name, options)
            judge.validate(name, sets[name])
            print(number, name, rows[name]["seconds"], judge.validation[name], flush=True)
            yield found
        for name in options.networks:
            for method in made:
                judge.distilled(name, method, sets[method], rows[method])
            line = {m: round(100 * rows[m][name]["balanced_accuracy"], 1) for m in made}
            print(number, name, line, flush=True)
            yield found


class Judge:
    """Trains networks on sets by one recipe; what was recorded for a network serves all sets."""

    def __init__(
        self, splits: ImageSplits, plan: NetworkPlan, recipe: Recipe, device: torch.device, each: int
    ) -> None:
        train = splits.train
        assert splits.validation is not None
        assert splits.test is not None
        self.recipe, self.device, self.each, self.graphs = recipe, device, each, Graphs()
        self.source = Source.of(train, device)
        self.models = {
            name: build_network(replace(plan, name=name), train.channels, train.size, train.classes).to(
                device
            )
            for name in NETWORK_POOL
        }
        self.test, self.checked = (
            TestPictures.of(one, self.source.mean, self.source.deviation, device)
            for one in (splits.test, splits.validation)
        )
        self.validation: dict[str, dict] = {}
        self.scores: dict[tuple[str, str], list[Score]] = {}

    def _score(self, name: str, one: DistilledSet, on: TestPictures) -> Score:
        images, targets = one.normalised().to(self.device), one.targets().to(self.device)
        model = self.models[name]
        return score_training(model, images, targets, on, self.recipe, (0, 1, 2), graphs=self.graphs)

    def _joined(self, name: str, method: str, score: Score) -> dict:
        """The mean over all sets so far, and the spread between them."""
        scores = self.scores.setdefault((name, method), [])
        scores.append(score)
        own = scores[0] if len(scores) == 1 else pooled(scores)
        return own.as_dict() | {"of_sets": [round(one.balanced_accuracy, 5) for one in scores]}

    def validate(self, method: str, one: DistilledSet) -> None:
        score = self._score("convnet", one, self.checked)
        self.validation[method] = self._joined("validation", method, score)

    def distilled(self, name: str, method: str, one: DistilledSet, row: dict) -> None:
        row[name] = self._joined(name, method, self._score(name, one, self.test))

    def random(self, name: str, row: dict) -> None:
        """As many random pictures, five draws with a network each."""
        given = (self.recipe, self.each, 5, (0,))
        score = score_random(self.source, self.models[name], self.test, *given, graphs=self.graphs)
        row[name] = score.as_dict()
        if name == "convnet":
            known = score_random(self.source, self.models[name], self.checked, *given, graphs=self.graphs)
            self.validation["random"] = known.as_dict()
        print("random", name, round(100 * score.balanced_accuracy, 1), flush=True)

    def full(self, epochs: int) -> dict[str, dict]:
        whole = replace(self.recipe, epochs=epochs)
        both = score_full(self.source, self.models["convnet"], self.test, whole, (0, 1))
        print("full", {name: round(100 * one.balanced_accuracy, 1) for name, one in both.items()}, flush=True)
        return {name: score.as_dict() for name, score in both.items()}


def iterations_of(name: str, options: argparse.Namespace) -> int:
    given = dict(one.split("=") for one in options.iterations)
    return int(given.get(name, ITERATIONS[name]))


def make(name: str, splits: ImageSplits, number: int, options: argparse.Namespace) -> DistilledSet:
    method, _, start = name.partition("-")
    balanced, start = start == "balanced", None if start == "balanced" else start
    experts = 20 if method == "mtt" else 5
    trajectory = TrajectoryPlan(experts=experts, epochs=15, latest_start=8, balanced=balanced)
    if options.small:
        trajectory = TrajectoryPlan(experts=2, epochs=2, student_steps=3, latest_start=1)
    plan = DistillPlan(
        method=method,
        images_per_class=options.images_per_class,
        iterations=2 if options.small else iterations_of(name, options),
        real_batch=options.real_batch,
        network=NetworkPlan(width=16 if options.small else 128),
        trajectory=trajectory,
        outer_steps=2 if options.small else None,
        start=start or None,
        seed=number,
    )
    return distill(splits.train, plan=plan, device=options.device)


def speed(splits: ImageSplits, device: torch.device, options: argparse.Namespace) -> Iterator[dict]:
    """Seconds of one iteration with its step: ours in four variants, and the plain recipe."""
    found: dict[str, dict] = {}
    small, only = options.small, options.only
    network = NetworkPlan(width=16 if small else 128)
    for method in (only,) if only else ("dc", "mtt"):
        for outer in (None, 1) if method == "dc" else (None,):
            plan = resolve(
                DistillPlan(
                    method=method,
                    images_per_class=10,
                    network=network,
                    outer_steps=2 if small and outer is None else outer,
                    inner_steps=2 if small else None,
                    trajectory=TrajectoryPlan(experts=2, epochs=3, latest_start=1),
                    augmentations=(),
                ),
                (),
            )
            name = f"{method} matching" if outer else method
            found[name] = contest(splits, plan, device, 2 if small else 5, quick=bool(only))
            print(name, {k: v for k, v in found[name].items() if k != "raw"}, flush=True)
            yield found
    if only:
        return
    found["expert step"] = expert_step(splits, network, device, 2 if small else 4)
    print("expert step", {k: v for k, v in found["expert step"].items() if k != "raw"}, flush=True)
    yield found


def contest(
    splits: ImageSplits, plan: DistillPlan, device: torch.device, repeats: int, *, quick: bool
) -> dict:
    """Variants of ours: classes in one vmap or one after the other, as CUDA graphs or launched."""
    raw = {}
    for batched in (False, True):
        for graphed in (True, False) if device.type == "cuda" else (False,):
            task = Task.of(splits.train, replace(plan, batched=batched), device)
            if quick and (batched or (device.type == "cuda" and not graphed)):
                continue
            if plan.method == "mtt":
                if batched:
                    continue
                task = replace(task, trajectories=train_experts(task))
            synthetic = starting_set(task)
            optimizer = torch.optim.SGD([synthetic.images.requires_grad_()], lr=0.1)

            def ours(step: int, task=task, synthetic=synthetic, optimizer=optimizer) -> None:
                for loss in MATCHING[task.plan.method](task, synthetic, step):
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

            name = ("vmap" if batched else "loop") + (", graphs" if graphed else "")
            with LaunchedOneByOne(not graphed):
                raw[name] = _seconds(ours, device, repeats)
    task = Task.of(splits.train, plan, device)
    if plan.method == "mtt":
        task = replace(task, trajectories=train_experts(task))
    images = starting_set(task).images.requires_grad_()
    optimizer = torch.optim.SGD([images], lr=0.1, momentum=0.5)
    plain = PEER_OF[plan.method]
    raw["plain"] = _seconds(lambda step: plain(task, images, optimizer), device, repeats)
    medians = {name: sorted(each)[len(each) // 2] for name, each in raw.items()}
    best = min((name for name in raw if name != "plain"), key=lambda name: medians[name])
    return {"seconds": medians, "best": best, "ratio": medians["plain"] / medians[best], "raw": raw}


class LaunchedOneByOne:
    """Inside, graphs are off."""

    def __init__(self, off: bool) -> None:
        self.off, self.call = off, GraphedFunction.__call__

    def __enter__(self) -> None:
        if self.off:
            GraphedFunction.__call__ = lambda own, *inputs: own.function(*inputs)  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        GraphedFunction.__call__ = self.call  # type: ignore[method-assign]


def expert_step(splits: ImageSplits, network: NetworkPlan, device: torch.device, repeats: int) -> dict:
    """Seconds of an epoch of experts side by side: one vmap over them all, or one after the other."""
    raw: dict[str, list[float]] = {}
    experts = 2 if network.width < 128 else 20
    for batched in (False, True):
        trajectory = TrajectoryPlan(experts=experts, epochs=1, expert_steps=1)
        plan = DistillPlan(method="mtt", network=network, trajectory=trajectory, batched=batched)
        task = Task.of(splits.train, resolve(plan, ()), device)
        name = "vmap" if batched else "loop"
        raw[name] = _seconds(
            lambda step, task=task: train_experts(task), device, 1 if batched else repeats, 0
        )
    return {"experts": experts, "seconds": {k: min(v) for k, v in raw.items()}, "raw": raw}


def _seconds(
    call: Callable[[int], object], device: torch.device, repeats: int, warm_up: int = 2
) -> list[float]:
    times = []
    for step in range(repeats + warm_up):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        call(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return times[warm_up:]


if __name__ == "__main__":
    main()
