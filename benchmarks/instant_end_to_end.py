"""InstanT beside its peers from a handful of labels, same seeds, batches, steps and augmentation for all.

    python benchmarks/instant_end_to_end.py --data mnist10k          40 labels, 4 a class
    python benchmarks/instant_end_to_end.py --data pneumoniamnist    20 labels, 10 a class
    python benchmarks/instant_end_to_end.py --data digits            the data that settings are chosen on
    python benchmarks/instant_end_to_end.py --side 28 --steps 300 --batch 32 --output X.json

One (method, seed) after the other; what is already in the JSON file is not run again, so it can be stopped.
The result of a run is the averaged model at the last step. `instant:NAME[:POSTERIOR[:VIEWS]]` is InstanT with
that estimator of the transition matrix (and that posterior from so many views). Purity: the share of accepted
pseudo-labels that is right, and that of a constant threshold which accepts as many; at the end, and over all
batches after the warm-up (`during`). How well a score tells right from wrong on frozen classifiers:
instant_selection.py.
"""
# bench: cpu, 60 min: --data mnist10k

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from record import readable
from sklearn.datasets import load_digits

from fewer.core.files import write_bytes
from fewer.learn import SemiSupervisedPlan, load_images, make_labelled_images, pick_labels, semi_supervised
from fewer.learn.data import ImageSplits, LabelledImages
from fewer.learn.few_labels.train import SemiSupervisedResult

SETTINGS = {
    # Pictures are reduced to 14 pixels, so that all seeds of all methods fit in minutes of one CPU core.
    "mnist10k": {"labels_per_class": 4, "steps": 200, "side": 14},
    "pneumoniamnist": {"labels_per_class": 10, "steps": 150, "side": 14},
    "digits": {"labels_per_class": 4, "steps": 200, "side": 8},
}
SHOWN = ("steps", "batch", "ratio", "rate")


def run(data: str, method: str, seed: int, given: argparse.Namespace) -> dict[str, object]:
    settings = SETTINGS[data]
    splits = read(data, given.side or settings["side"])
    train = splits.train
    rows = pick_labels(train.labels, settings["labels_per_class"], train.classes, seed)
    name, estimation, posterior, views = (*method.split(":"), "", "", "")[:4]
    plan = SemiSupervisedPlan(
        method=name,  # pyright: ignore
        steps=given.steps or settings["steps"],
        batch=given.batch,
        ratio=5,
        rate=0.1,
        seed=seed,
        device=given.device,
        **({"estimation": estimation} if estimation else {}),  # pyright: ignore
        **({"posterior": posterior} if posterior else {}),  # pyright: ignore
        **({"views": int(views)} if views else {}),
    )
    usual = asdict(SemiSupervisedPlan())
    began = time.process_time(), time.perf_counter()
    result = semi_supervised(train, rows, plan=plan, test=splits.test)
    assert result.figures is not None
    return {
        "method": method,
        "seed": seed,
        "data": data,
        "cpu_seconds": round(time.process_time() - began[0], 1),
        "wall_seconds": round(time.perf_counter() - began[1], 1),
        **{name: getattr(result.figures, name) for name in ("accuracy", "balanced_accuracy", "auc")},
        "calibration_error": result.figures.calibration_error,
        "purity": purity(result, train, plan.steps) if name == "instant" else None,
        "plan": {
            name: value for name, value in asdict(plan).items() if name in SHOWN or value != usual[name]
        },
    }


def read(data: str, side: int) -> ImageSplits:
    if data == "digits":
        digits = load_digits()
        whole = make_labelled_images((digits.images * 15).astype("uint8"), digits.target)
        return ImageSplits(whole.select(range(1297)), test=whole.select(range(1297, 1797)))
    return load_images(Path(f"data/{data}/{data}.npz"), size=side)


def purity(result: SemiSupervisedResult, train: LabelledImages, steps: int) -> dict[str, float | None]:
    """Right among accepted at the end, and right among as many of highest confidence."""
    verdicts = result.verdicts
    assert verdicts.accepted is not None
    right = verdicts.pseudo == train.labels
    count = int(verdicts.accepted.sum())
    constant = verdicts.confidence.argsort(descending=True)[:count]
    after = [i for i, step in enumerate(result.curves["step"]) if (step or 0) > 0.1 * steps]
    means = {
        name: statistics.mean(v for i in after if (v := result.curves[name][i]) is not None)
        for name in ("purity", "purity_constant", "utilisation")
    }
    return {
        "utilisation_end": count / len(train),
        "accepted_right_end": float(right[verdicts.accepted].double().mean()) if count else None,
        "constant_right_end": float(right[constant].double().mean()) if count else None,
        **{f"{name}_during": value for name, value in means.items()},
    }


def summary(runs: list[dict]) -> dict[str, object]:
    """Means, spreads and paired differences over the seeds that all methods have."""
    by_method: dict[str, dict[int, dict]] = {}
    for one in runs:
        by_method.setdefault(one["method"], {})[one["seed"]] = one
    seeds = sorted(set.intersection(*(set(found) for found in by_method.values())))
    result: dict[str, object] = {"seeds": seeds}
    for name in ("accuracy", "balanced_accuracy", "auc"):
        table = {method: [found[s][name] for s in seeds] for method, found in by_method.items()}
        result[name] = {
            method: {
                "mean": statistics.mean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
            }
            for method, values in table.items()
        }
        for own in (method for method in table if method.startswith("instant")):
            result[f"{name}_{own}_minus"] = {
                method: paired(table[own], values) for method, values in table.items() if method != own
            }
    for method, found in by_method.items():
        if not method.startswith("instant"):
            continue
        result[f"purity_{method}"] = {
            name: paired(
                [found[s]["purity"][f"{ours}"] for s in seeds], [found[s]["purity"][f"{peer}"] for s in seeds]
            )
            for name, ours, peer in (
                ("during", "purity_during", "purity_constant_during"),
                ("end", "accepted_right_end", "constant_right_end"),
            )
        }
    return result


def paired(ours: list[float], theirs: list[float]) -> dict[str, float | None]:
    """Mean difference with a 95 % Student interval."""
    from scipy import stats

    pairs = zip(ours, theirs, strict=True)
    differences = [a - b for a, b in pairs if a is not None and b is not None]  # None: nothing accepted
    if not differences:
        return {"mean": None, "low": None, "high": None}
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", choices=list(SETTINGS), default="mnist10k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--side", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--join", type=Path, nargs="+", default=[], help="take the runs of these files in")
    parser.add_argument("--methods", default="labels-only,fixmatch,instant")
    parser.add_argument("--at-most", type=int, default=1000, help="new runs in this call")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.output or Path(f"benchmarks/results/instant_{given.data}.json")
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    if given.join:
        for other in given.join:
            runs += json.loads(other.read_text())["runs"]
        write(path, runs, given)
        return
    have = {(one["method"], one["seed"]) for one in runs}
    wanted = [(m, s) for s in given.seeds for m in given.methods.split(",") if (m, s) not in have]
    for method, seed in wanted[: given.at_most]:
        runs.append(run(given.data, method, seed, given))
        write(path, runs, given)


def write(path: Path, runs: list[dict], given: argparse.Namespace) -> None:
    machine = {"cpu": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
    plan = runs[-1]["plan"]
    settings = SETTINGS[given.data] | {name: plan[name] for name in SHOWN}
    settings["side"] = given.side or settings["side"]
    facts = {"machine": machine, "settings": settings, "summary": summary(runs), "runs": runs}
    write_bytes(path, (readable(facts) + "\n").encode())


if __name__ == "__main__":
    main()
