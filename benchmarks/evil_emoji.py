"""Emoji styles, group8, leave one style out: ERM, RigL and EVIL on the same splits, weights and batches.

    python benchmarks/evil_emoji.py                                    group-cnn, 32 px, for a CPU
    python benchmarks/evil_emoji.py --gpu --lanes 3                    ResNet-18, 64 px, runs side by side
    python benchmarks/evil_emoji.py --gpu --lanes 3 --average 0.992          the same, weights averaged
    python benchmarks/evil_emoji.py --gpu --lanes 6 --network group-cnn --steps 3000 --looks 10
        --average 0.996

EVIL's figure is that of the mode (faithful or extended) with the better source validation, run by run; the
target's pictures decide nothing. Accuracy is on new objects in the held-out style. Finished runs are not run
again, so it can be stopped. With `--lanes N` one process trains N runs side by side, whole steps as CUDA
graphs; with `--workers N` the runs are dealt to N processes on the same device. With `--seconds S` no run
starts after S seconds, and the report, written again after every run, holds what is finished.
"""
# bench: gpu, 10 min: --gpu --lanes 3

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from fewer.core.files import write_json
from fewer.learn.domains.images import Domains, load_domains
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.sweep import Job, finished, run_sweep, sweep_jobs
from fewer.learn.domains.tables import paired_difference
from fewer.learn.graphed import GraphedFunction

DATA = Path(__file__).parents[1] / "data" / "emoji-styles"
METHODS = {
    "erm": {"method": "none"},
    "rigl": {"method": "rigl"},
    "evil faithful": {"method": "evil", "mode": "faithful"},
    "evil extended": {"method": "evil", "mode": "extended"},
}


def all_jobs(arguments: argparse.Namespace) -> tuple[Domains, list[Job]]:
    network = arguments.network or ("resnet-18" if arguments.gpu else "group-cnn")
    domains = load_domains(DATA, size=16 if arguments.small else 64 if network == "resnet-18" else 32)
    plans = {
        name: InvariantPlan(
            **method,
            network=network,  # pyright: ignore
            steps=10 if arguments.small else arguments.steps,
            evaluate_every=10 if arguments.small else arguments.steps // arguments.looks,
            records="whole" if arguments.gpu else "brief",
            batch=arguments.batch or (24 if arguments.gpu else 12),
            augment=True,
            average=arguments.average,
            density=0.6,
            device="cuda" if arguments.gpu else "cpu",
        )
        for name, method in METHODS.items()
        if name in arguments.methods
    }
    targets = domains.names[:1] if arguments.small else domains.names
    jobs = sweep_jobs(domains, plans, targets, arguments.seeds, 1, "training-domain")  # seed by seed
    return domains, sorted(jobs, key=lambda job: job.method == "rigl")  # the control comes last


def figures_of(job: Job, done: dict, names: tuple[str, ...]) -> dict[str, float]:
    """Of the checkpoint that validates best, and of the last one, which nobody chose."""
    record, env = done["records"][-1], names.index(job.target)
    held = f"env{env}_"
    others = [v for k, v in record.items() if k.endswith("_out_acc") and not k.startswith(held)]
    last = {"last_accuracy": record[f"{held}new_acc"], "last_all_accuracy": record[f"{held}all_acc"]}
    return done["figures"] | last | {"last_validation": sum(others) / len(others)}


def summarise(runs: list[tuple[Job, dict]], names: tuple[str, ...]) -> dict[str, object]:
    found: dict[str, dict[tuple[str, int], dict[str, float]]] = {name: {} for name in METHODS}
    for job, done in runs:
        found[job.method][job.target, job.plan.seed] = figures_of(job, done, names)
    summary: dict[str, object] = {}
    for figure in ("accuracy", "all_accuracy", "last_accuracy", "last_all_accuracy"):
        judge = "last_validation" if figure.startswith("last") else "source_validation"
        faithful, extended = found["evil faithful"], found["evil extended"]
        pairs = (
            faithful.keys() & extended.keys() if faithful and extended else faithful.keys() | extended.keys()
        )
        both = {
            pair: max(
                (rows[pair] for rows in (faithful, extended) if pair in rows),
                key=lambda figures: figures[judge],
            )
            for pair in pairs
        }
        for name, rows in {**found, "evil": both}.items():
            entry: dict[str, object] = {"runs": len(rows)}
            if rows:
                entry["percent"] = 100 * sum(row[figure] for row in rows.values()) / len(rows)
            for other in ("erm", "rigl"):
                pairs = sorted(rows.keys() & found[other].keys())
                gaps = [100 * (rows[pair][figure] - found[other][pair][figure]) for pair in pairs]
                if gaps and other != name:
                    entry[f"points_over_{other}"] = paired_difference(gaps).as_dict()
            summary[f"{name}, {figure}"] = entry
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, help="of each source; 24 on a GPU, 12 on a CPU")
    parser.add_argument("--network", choices=["resnet-18", "group-cnn"])
    parser.add_argument("--average", type=float, help="judge averaged weights; the share that stays of them")
    parser.add_argument("--looks", type=int, default=4, help="evaluations of a run, each a checkpoint")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--small", action="store_true", help="10 steps, one style: does the script work?")
    parser.add_argument("--launched", action="store_true", help="without CUDA graphs")
    parser.add_argument("--share", help="K/N: only every Nth run from the Kth on")
    parser.add_argument("--runs", type=Path, default=Path("outputs/evil_emoji"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/evil_emoji.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    if arguments.workers > 1 and not arguments.share:
        # A worker that dies (a driver may not bear the recording of graphs) is followed by one without them.
        for more in ([], ["--launched"]):
            share = [["--share", f"{k}/{arguments.workers}", *more] for k in range(arguments.workers)]
            left = f"{arguments.seconds - (time.perf_counter() - began):.0f}"
            words = [sys.executable, *sys.argv, "--seconds", left]
            workers = [subprocess.Popen([*words, *own]) for own in share]
            codes = [worker.wait() for worker in workers]
            if not any(codes):
                break
    domains, jobs = all_jobs(arguments)
    if arguments.launched:
        GraphedFunction.__call__ = lambda own, *inputs: own.function(*inputs)  # type: ignore[method-assign]
    if arguments.share or arguments.workers == 1:
        first, step = map(int, (arguments.share or "0/1").split("/"))
        own = jobs[first::step]
        sweeps = [own] if arguments.lanes > 1 else [[job] for job in own]
        for part in sweeps:
            options = {"side_by_side": arguments.lanes, "checkpoints": False, "models": False}
            for job, done in run_sweep(domains, part, arguments.runs, resume=True, **options):  # pyright: ignore
                now = time.perf_counter() - began
                print(f"{now:.1f} s: {job.folder(arguments.runs).name} {done['figures']}", flush=True)
                if not arguments.share:
                    report(arguments, domains, jobs, began)
                if now > arguments.seconds:
                    break
            if time.perf_counter() - began > arguments.seconds:
                break
    if not arguments.share:
        print(json.dumps(report(arguments, domains, jobs, began), indent=1))


def report(
    arguments: argparse.Namespace, domains: Domains, jobs: list[Job], began: float
) -> dict[str, object]:
    """Writes what is finished; returns the summary."""
    found = [(job, finished(job.folder(arguments.runs), job)) for job in jobs]
    runs = [(job, done) for job, done in found if done is not None]
    written = {
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if arguments.gpu else "cpu",
        "torch": torch.__version__,
        "settings": {
            "steps": arguments.steps,
            "network": arguments.network or ("resnet-18" if arguments.gpu else "group-cnn"),
            "average": arguments.average,
            "looks": arguments.looks,
            "methods": arguments.methods,
            "batch": arguments.batch or (24 if arguments.gpu else 12),
            "seeds": arguments.seeds,
            "workers": arguments.workers,
            "lanes": arguments.lanes,
        },
        "wall_seconds": time.perf_counter() - began,
        "runs_finished": len(runs),
        "runs_planned": len(jobs),
        "seconds_of_runs": sum(done["seconds"] for _, done in runs),
        "summary": summarise(runs, domains.names),
        "runs": [
            {
                "method": job.method,
                "target": job.target,
                "seed": job.plan.seed,
                "seconds": done["seconds"],
                **figures_of(job, done, domains.names),
            }
            for job, done in runs
        ],
    }
    write_json(arguments.output, written)
    return written["summary"]  # pyright: ignore


if __name__ == "__main__":
    main()
