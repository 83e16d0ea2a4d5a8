"""What EVIL's step costs beside ERM's, averaged over whole runs that take turns step by step.

    python benchmarks/evil_cost.py [--steps 100]

Emoji styles, group-cnn at 32 px, 4 source domains; CPU seconds of the process, so that other load
counts little. Published share: 20 of every 400 steps also take a domain gradient; `scaled` is the
default schedule of a short run.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from fewer.core.device import seeded
from fewer.core.files import write_json
from fewer.learn.domains.bases import DomainBatch
from fewer.learn.domains.images import load_domains
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.training import MaskedTraining
from fewer.learn.networks import NetworkPlan, build_network

DATA = Path(__file__).parents[1] / "data" / "emoji-styles"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/evil_cost.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    domains, steps = load_domains(DATA), arguments.steps
    images = [data.as_float() for data in domains.images[:4]]
    plans = {
        "erm": InvariantPlan(method="none", steps=steps),
        # 5 % of the steps gather, as 20 of 400 do in a published run.
        "evil published share": InvariantPlan(
            steps=steps, warmup=steps // 5, delta=20, accumulation=1, exchange_end=3 * steps // 5
        ),
        "evil scaled": InvariantPlan(steps=steps),
    }
    plan = NetworkPlan(name="group-cnn", channels=3, classes=8, height=32, width=32)
    trainings = {name: MaskedTraining(build_network(plan), p, 4) for name, p in plans.items()}
    seconds = dict.fromkeys(plans, 0.0)
    for step in range(steps):
        generator = seeded(0, step)
        rows = [torch.randperm(1586, generator=generator)[: arguments.batch] for _ in images]
        batch = DomainBatch(
            torch.cat([x[r] for x, r in zip(images, rows, strict=True)]),
            torch.cat([d.labels[r] for d, r in zip(domains.images, rows, strict=False)]),
            (arguments.batch,) * 4,
        )
        for name, training in trainings.items():
            began = time.process_time()
            training.step(batch, generator)
            seconds[name] += time.process_time() - began
    ratios = {name: value / seconds["erm"] for name, value in seconds.items()}
    report = {"steps": steps, "batch": arguments.batch, "cpu_seconds": seconds, "over_erm": ratios}
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    write_json(arguments.output, {**machine, "threads": 1, **report})
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
