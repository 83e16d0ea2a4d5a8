"""What EVIL's step costs beside ERM's, averaged over whole runs that take turns step by step.

    python benchmarks/evil_cost.py [--steps 400]
    python benchmarks/evil_cost.py --gpu --output benchmarks/results/evil_cost_gpu.json

Emoji styles, 4 source domains; group-cnn at 32 px and CPU seconds of the process, so that other load counts
little, or with --gpu ResNet-18 at 64 px and wall seconds, there also without CUDA graphs. Published share: 20
of every 400 steps also take a domain gradient; `scaled` is the default schedule of a run of this length.
"""
# bench: cpu, 5 min: --steps 50

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
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/evil_cost.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    side, device = (64, "cuda") if arguments.gpu else (32, "cpu")
    domains, steps = load_domains(DATA, size=side), arguments.steps
    images = [data.as_float().to(device) for data in domains.images[:4]]
    labels = domains.images[0].labels.to(device)
    plans = {
        "erm": InvariantPlan(method="none", steps=steps),
        # 5 % of the steps gather, as 20 of 400 do in a published run.
        "evil published share": InvariantPlan(
            steps=steps, warmup=steps // 5, delta=20, accumulation=1, exchange_end=3 * steps // 5
        ),
        "evil scaled": InvariantPlan(steps=steps),
        "evil extended, scaled": InvariantPlan(steps=steps, mode="extended"),
    }
    name = "resnet-18" if arguments.gpu else "group-cnn"
    plan = NetworkPlan(name=name, channels=3, classes=8, height=side, width=side)
    trainings = {name: MaskedTraining(build_network(plan).to(device), p, 4) for name, p in plans.items()}
    if arguments.gpu:
        launched = MaskedTraining(build_network(plan).to(device), plans["erm"], 4)
        launched._replayed = lambda batch: launched._gradients(batch, seeded(0))  # type: ignore[method-assign]
        trainings["erm, launched"] = launched
        for training in trainings.values():
            training.network.to(memory_format=torch.channels_last)  # pyright: ignore
    times: dict[str, list[float]] = {name: [] for name in trainings}
    clock = time.perf_counter if arguments.gpu else time.process_time
    for step in range(steps):
        generator = seeded(0, step)
        rows = [torch.randperm(1586, generator=generator)[: arguments.batch].to(device) for _ in images]
        batch = DomainBatch(
            torch.cat([x[r] for x, r in zip(images, rows, strict=True)]),
            torch.cat([labels[r] for r in rows]),
            (arguments.batch,) * 4,
        )
        for name, training in trainings.items():
            began = clock()
            training.step(batch, generator)
            if arguments.gpu:
                torch.cuda.synchronize()
            times[name].append(clock() - began)
    seconds = {name: sum(each[5:]) for name, each in times.items()}  # the first steps also pay for set-up
    report = {
        "steps": steps,
        "batch": arguments.batch,
        "device": torch.cuda.get_device_name() if arguments.gpu else "cpu",
        "seconds": seconds,
        "median_ms": {name: 1000 * sorted(each)[len(each) // 2] for name, each in times.items()},
        "over_erm": {name: value / seconds["erm"] for name, value in seconds.items()},
    }
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    write_json(arguments.output, {**machine, "threads": 1, **report})
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
