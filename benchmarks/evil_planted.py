"""Planted variant features: does EVIL drop the weights that read them, and does it help on a new domain?

    python benchmarks/evil_planted.py [--seeds 10 11 ... 19]

Two source domains; 8 inputs carry the label in every domain, 8 inputs carry it in the sources and against it
in the target. Method by method on the same data, weights and batches: ERM, RigL, EVIL as described, EVIL in
extended mode. Settings were chosen on seeds 0 to 3; the report is on 10 to 19.
"""
# bench: cpu, 15 min:

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
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.tables import paired_difference
from fewer.learn.domains.training import MaskedTraining

AGREEMENT = {-1: 0.95, 1: 0.80, 0: 0.10}  # P(spurious = label) by domain value; 0 is the test domain
METHODS = {
    "erm": {"method": "none"},
    "rigl": {"method": "rigl"},
    "evil faithful": {"method": "evil", "mode": "faithful"},
    "evil extended": {"method": "evil", "mode": "extended"},
}


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(16, 64), nn.ReLU())
        self.classifier = nn.Linear(64, 2)

    def features(self, inputs: Tensor) -> Tensor:
        return self.hidden(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.features(inputs))


def sample(count: int, domain: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(inputs, labels): columns 0-7 invariant, 8-15 variant."""
    label = torch.randint(2, (count,), generator=generator)
    noisy = label ^ (torch.rand(count, generator=generator) < 0.1).long()
    spurious = torch.where(torch.rand(count, generator=generator) < AGREEMENT[domain], label, 1 - label)
    inputs = torch.randn(count, 16, generator=generator)
    inputs[:, :8] += 0.45 * (2 * noisy - 1)[:, None]
    inputs[:, 8:] += 0.9 * (2 * spurious - 1)[:, None] + 0.6 * domain
    return inputs, label


def run(name: str, seed: int, steps: int = 1000) -> dict[str, float]:
    sources = [sample(4000, domain, seeded(seed, 1, domain + 1)) for domain in (-1, 1)]
    test = sample(4000, 0, seeded(seed, 2))
    with isolated_randomness(seed):
        network = TwoLayers()
    plan = InvariantPlan(
        **METHODS[name],
        density=0.5,
        alpha=0.3,
        accumulation=20,
        warmup=200,
        delta=80,
        exchange_end=600,
        stem_dense=False,
        steps=steps,
        rate=3e-3,
        batch=64,
        seed=seed,
        device="cpu",
    )
    training = MaskedTraining(network, plan, 2)
    began = time.perf_counter()
    for step in range(steps):
        generator = seeded(seed, step, 0)
        rows = [torch.randperm(4000, generator=generator)[:64] for _ in sources]
        batch = DomainBatch(
            torch.cat([x[r] for (x, _), r in zip(sources, rows, strict=True)]),
            torch.cat([y[r] for (_, y), r in zip(sources, rows, strict=True)]),
            (64, 64),
        )
        training.step(batch, generator)
    seconds = time.perf_counter() - began
    with torch.no_grad():
        accuracy = float((network(test[0]).argmax(1) == test[1]).float().mean())
    result = {"accuracy": accuracy, "seconds": seconds}
    if training.masks:
        dropped = ~training.masks["hidden.0.weight"]
        result |= {
            "variant_dropped": float(dropped[:, 8:].float().mean()),
            "invariant_dropped": float(dropped[:, :8].float().mean()),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10, 20)))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/evil_planted.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # One (seed, method) after the other; what the file already holds is not run again.
    done = json.loads(arguments.output.read_text())["by_seed"] if arguments.output.exists() else {}
    for seed in map(str, arguments.seeds):
        for name in METHODS:
            if name not in done.setdefault(seed, {}):
                done[seed][name] = run(name, int(seed))
                write(arguments.output, done)
    for name, entry in summarise(done).items():
        print(name, entry)


def summarise(done: dict[str, dict[str, dict[str, float]]]) -> dict[str, object]:
    whole = [by_method for by_method in done.values() if len(by_method) == len(METHODS)]
    runs = {name: [by_method[name] for by_method in whole] for name in METHODS} if whole else {}
    summary = {}
    for name, rows in runs.items():
        entry: dict[str, object] = {"accuracy": statistics.mean(row["accuracy"] for row in rows)}
        entry["seconds"] = statistics.median(row["seconds"] for row in rows)
        if "variant_dropped" in rows[0]:
            entry["variant_dropped"] = statistics.mean(row["variant_dropped"] for row in rows)
            entry["invariant_dropped"] = statistics.mean(row["invariant_dropped"] for row in rows)
            entry["ratio"] = statistics.mean(
                row["variant_dropped"] / row["invariant_dropped"] for row in rows
            )
        if name != "erm":
            gaps = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(rows, runs["erm"], strict=True)]
            entry["points_over_erm"] = paired_difference(gaps).as_dict()
        summary[name] = entry
    return summary


def write(path: Path, done: dict[str, dict[str, dict[str, float]]]) -> None:
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    write_json(path, {**machine, "cores": 1, "summary": summarise(done), "by_seed": done})


if __name__ == "__main__":
    main()
