"""ColoredMNIST-10k: the colour that helps in the sources misleads in the target (-90 %).

    python benchmarks/evil_colored_mnist.py [--seeds 0 1 2]

14 x 14 pixels, a network of two hidden layers of 256, all of a domain in one batch, 500 steps; penalties
set in at step 150. `last` is the oracle's figure (last checkpoint), `best` that of the best checkpoint on
the target, which the bar asks for. Not comparable with published ColoredMNIST: a seventh of the digits.
"""
# bench: cpu, 60 min:

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from fewer.core.device import isolated_randomness, seeded
from fewer.core.files import write_json
from fewer.learn.domains.bases import DomainBatch
from fewer.learn.domains.digits import colored_mnist, read_mnist
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.protocol import split_domain
from fewer.learn.domains.tables import paired_difference
from fewer.learn.domains.training import MaskedTraining

DATA = Path(__file__).parents[1] / "data" / "mnist10k" / "mnist10k.npz"
RUNS = {
    "erm": {"base": "erm", "method": "none"},
    "vrex + evil": {"base": "vrex", "method": "evil"},
    "irm + evil": {"base": "irm", "method": "evil"},
    "erm + evil": {"base": "erm", "method": "evil"},
    "vrex": {"base": "vrex", "method": "none"},
    "irm": {"base": "irm", "method": "none"},
}


class Perceptron(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.classifier = nn.Linear(256, 2)

    def features(self, images: Tensor) -> Tensor:
        return self.hidden(images.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def run(name: str, seed: int, steps: int = 500) -> dict[str, object]:
    domains = colored_mnist(read_mnist(DATA), seed, size=14)
    images = [data.as_float()[:, :2] for data in domains.images]
    splits = [split_domain(domains, env, 0.2, seed) for env in range(3)]
    labels = [data.labels for data in domains.images]
    inside = [rows for rows, _ in splits[:2]]
    batch = DomainBatch(
        torch.cat([images[env][rows] for env, rows in enumerate(inside)]),
        torch.cat([labels[env][rows] for env, rows in enumerate(inside)]),
        tuple(len(rows) for rows in inside),
    )
    plan = InvariantPlan(
        **RUNS[name],
        steps=steps,
        rate=1e-3,
        penalty=1e4 if RUNS[name]["base"] != "erm" else None,
        penalty_from=150 if RUNS[name]["base"] != "erm" else None,
        warmup=100,
        delta=40,
        accumulation=10,
        exchange_end=300,
        seed=seed,
        device="cpu",
    )
    with isolated_randomness(seed):
        network = Perceptron(2 * 14 * 14)
    training, curve = MaskedTraining(network, plan, 2), []
    began = time.perf_counter()
    for step in range(steps):
        training.step(batch, seeded(seed, step))
        if (step + 1) % 10 == 0:
            with torch.no_grad():
                out = network(images[2][splits[2][1]]).argmax(1) == labels[2][splits[2][1]]
                curve.append(float(out.float().mean()))
    return {"best": max(curve), "last": curve[-1], "curve": curve, "seconds": time.perf_counter() - began}


def summarise(done: dict[str, dict[str, dict]]) -> dict[str, object]:
    summary: dict[str, object] = {}
    for name in RUNS:
        whole = [rows for rows in done.values() if name in rows and "erm" in rows]
        if not whole:
            continue
        gaps = [100 * (rows[name]["best"] - rows["erm"]["best"]) for rows in whole]
        summary[name] = {
            "best": statistics.mean(rows[name]["best"] for rows in whole),
            "last": statistics.mean(rows[name]["last"] for rows in whole),
            "best_over_erm_points": paired_difference(gaps).as_dict(),
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/evil_colored_mnist.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    done = json.loads(arguments.output.read_text())["by_seed"] if arguments.output.exists() else {}
    for seed in map(str, arguments.seeds):
        for name in RUNS:
            if name not in done.setdefault(seed, {}):
                done[seed][name] = run(name, int(seed))
                write_json(arguments.output, {**machine, "summary": summarise(done), "by_seed": done})
                print(seed, name, done[seed][name]["best"], done[seed][name]["last"], flush=True)
    print(json.dumps(summarise(done), indent=1))


if __name__ == "__main__":
    main()
