"""InstanT beside its peers from a handful of labels, same seeds, batches, steps and augmentation for all.

    python benchmarks/instant_end_to_end.py --data mnist10k          40 labels, 4 a class
    python benchmarks/instant_end_to_end.py --data pneumoniamnist    20 labels, 10 a class

One (method, seed) after the other; what is already in the JSON file is not run again, so it can be stopped.
The result of a run is the averaged model at the last step. Of InstanT runs also the selection quality is
kept, with the classifier frozen at 10 % and at 30 % of the run: how well does a score tell right
pseudo-labels from wrong?
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from fewer.core.checkpoint import latest_checkpoint
from fewer.core.files import write_json
from fewer.learn import SemiSupervisedPlan, load_images, pick_labels, semi_supervised
from fewer.learn.data import LabelledImages
from fewer.learn.evaluate import binary_area_under_curve
from fewer.learn.few_labels.train import SemiSupervisedResult
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network
from fewer.learn.thresholds.instance import InstanceThreshold
from fewer.learn.thresholds.instant import InstantState

SETTINGS = {
    # Pictures are reduced to 14 pixels, so that all seeds of all methods fit in minutes of one CPU core.
    "mnist10k": {"labels_per_class": 4, "steps": 200, "side": 14},
    "pneumoniamnist": {"labels_per_class": 10, "steps": 150, "side": 14},
}


class Stop(Exception):
    pass


class StopAt:
    """Interrupts a run after some steps; `fit` saves what was reached."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def start(self, what: str, total: int) -> None: ...
    def stop(self) -> None: ...
    def say(self, text: str) -> None: ...

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.left -= steps
        if self.left == 0:
            raise Stop


def run(data: str, method: str, seed: int) -> dict[str, object]:
    settings = SETTINGS[data]
    splits = load_images(Path(f"data/{data}/{data}.npz"), size=settings["side"])
    train = splits.train
    rows = pick_labels(train.labels, settings["labels_per_class"], train.classes, seed)
    plan = SemiSupervisedPlan(
        method=method,  # pyright: ignore
        steps=settings["steps"],
        batch=16,
        ratio=5,
        rate=0.1,
        seed=seed,
        device="cpu",
    )
    began, selection, done = time.process_time(), {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for share in (0.1, 0.3) if method == "instant" else ():
            stop = StopAt(int(plan.steps * share) - done)
            try:
                semi_supervised(train, rows, plan=plan, checkpoints=Path(folder), resume=True, progress=stop)
            except Stop:
                done = int(plan.steps * share)
            selection[f"at_{share:.0%}"] = selection_quality(Path(folder), plan, train)
        result = semi_supervised(
            train, rows, plan=plan, test=splits.test, checkpoints=Path(folder), resume=True
        )
    assert result.figures is not None
    return {
        "method": method,
        "seed": seed,
        "cpu_seconds": round(time.process_time() - began, 1),
        **{name: getattr(result.figures, name) for name in ("accuracy", "balanced_accuracy", "auc")},
        "calibration_error": result.figures.calibration_error,
        "curves": result.curves,
        "purity": purity(result, train, plan.steps) if method == "instant" else None,
        "selection": selection,
        "plan": asdict(plan),
    }


def selection_quality(folder: Path, plan: SemiSupervisedPlan, train: LabelledImages) -> dict[str, float]:
    """AUROC of "the pseudo-label is right" on all training pictures, for four scores."""
    found = latest_checkpoint(folder)
    assert found is not None
    height, width = train.size
    network_plan = NetworkPlan(
        name=plan.network, channels=train.channels, classes=train.classes, height=height, width=width
    )
    network = build_network(network_plan)
    state = InstantState(plan, train.channels, train.classes, len(train))
    for name, module in (("network", network), ("method", state)):
        own = {k.removeprefix(f"{name}/"): v for k, v in found.tensors.items() if k.startswith(f"{name}/")}
        module.load_state_dict(own)
    model = TrainedClassifier(network, network_plan, train.class_names, *train.mean_and_deviation())
    raw = model.predict(train.images)
    aligned = state.alignment(raw)
    right = aligned.argmax(1) == train.labels
    transition = state.transition(None).detach()
    scores = {"maximum_probability": aligned.max(1).values, "maximum_unaligned": raw.max(1).values}
    for posterior in ("flattened", "plain"):
        decide = InstanceThreshold(classes=train.classes, posterior=posterior)  # pyright: ignore
        scores[f"instant_{posterior}"] = aligned.max(1).values - decide(aligned, transition).tau
    quality = {name: binary_area_under_curve(score, right) for name, score in scores.items()}
    return {**quality, "pseudo_label_accuracy": float(right.double().mean())}


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
        if "instant" in table:
            result[f"{name}_instant_minus"] = {
                method: paired(table["instant"], values)
                for method, values in table.items()
                if method != "instant"
            }
    return result


def paired(ours: list[float], theirs: list[float]) -> dict[str, float | None]:
    """Mean difference with a 95 % Student interval."""
    from scipy import stats

    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", choices=list(SETTINGS), default="mnist10k")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default="labels-only,fixmatch,instant")
    parser.add_argument("--at-most", type=int, default=1000, help="new runs in this call")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.output or Path(f"benchmarks/results/instant_{given.data}.json")
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    have = {(one["method"], one["seed"]) for one in runs}
    wanted = [(m, s) for s in range(given.seeds) for m in given.methods.split(",") if (m, s) not in have]
    for method, seed in wanted[: given.at_most]:
        runs.append(run(given.data, method, seed))
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "threads": 1,
            "torch": torch.__version__,
        }
        write_json(
            path,
            {"machine": machine, "settings": SETTINGS[given.data], "summary": summary(runs), "runs": runs},
        )


if __name__ == "__main__":
    main()
