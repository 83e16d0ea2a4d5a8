"""Which unlabelled pictures are rightly pseudo-labelled? Scores against each other on frozen classifiers.

    python benchmarks/instant_selection.py --data digits --seeds 0 1 2 3 4 5 6 7 8 9   to choose
    python benchmarks/instant_selection.py --data mnist10k --seeds 0 1 2 3 4 5 6 7 8 9   to measure

InstanT is trained (200 steps of 16 + 80, 4 labels a class) and stopped at 10 % (the end of the warm-up), 30 %
and 100 %. With the network as it is, every training picture gets its aligned probabilities, and each score
p_s - tau ranks them: `auroc` is the area under the curve of "pseudo-label is right"; `purity` the share that
is right among the best as many as InstanT's own threshold accepts. The peer is the maximum probability alone.
Matrices: `start` (as the class estimator begins), `class` (trained along), `weak` and `strong` (counted anew
with the frozen network on 16 weak or strong views of each labelled picture).
"""
# bench: cpu, 30 min: --data mnist10k

import argparse
import platform
import statistics
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from fewer.core.checkpoint import latest_checkpoint
from fewer.core.device import seeded
from fewer.core.files import write_json
from fewer.learn import SemiSupervisedPlan, load_images, make_labelled_images, pick_labels, semi_supervised
from fewer.learn.data import LabelledImages
from fewer.learn.evaluate import binary_area_under_curve
from fewer.learn.few_labels.augment import strong_pool, strong_view, weak_view
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network
from fewer.learn.thresholds.instance import InstanceThreshold, image_part
from fewer.learn.thresholds.instant import InstantState
from fewer.learn.thresholds.transition import ClassTransition, CountedTransition

SHARES = (0.1, 0.3, 1.0)


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


def pictures(name: str, side: int) -> LabelledImages:
    if name == "digits":
        digits = load_digits()
        return make_labelled_images((digits.images * 15).astype("uint8"), digits.target).select(range(1297))
    return load_images(Path(f"data/{name}/{name}.npz"), size=side).train


def quality(data: str, seed: int, side: int) -> dict[str, object]:
    train = pictures(data, side)
    rows = pick_labels(train.labels, 4 if train.classes > 2 else 10, train.classes, seed)
    plan = SemiSupervisedPlan(steps=200, batch=16, ratio=5, rate=0.1, seed=seed, device="cpu")
    found: dict[str, object] = {"seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        done = 0
        for share in SHARES:
            try:
                stop = StopAt(round(plan.steps * share) - done)
                semi_supervised(train, rows, plan=plan, checkpoints=Path(folder), resume=True, progress=stop)
            except Stop:
                done = round(plan.steps * share)
            found[f"at {share:.0%}"] = scores_at(Path(folder), plan, train, rows)
    return found


def scores_at(
    folder: Path, plan: SemiSupervisedPlan, train: LabelledImages, rows: torch.Tensor
) -> dict[str, object]:
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    height, width = train.size
    network_plan = NetworkPlan(
        name=plan.network, channels=train.channels, classes=train.classes, height=height, width=width
    )
    network = build_network(network_plan)
    state = InstantState(plan, train.channels, train.classes, len(train))
    for name, module in (("network", network), ("method", state)):
        tensors = checkpoint.tensors
        own = {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
        module.load_state_dict(own)
    model = TrainedClassifier(network, network_plan, train.class_names, *train.mean_and_deviation())
    aligned = state.alignment(model.predict(train.images))
    confidence, pseudo = aligned.max(1)
    right = pseudo == train.labels
    taken = int(state.threshold(aligned, state.transition(None).detach()).mask.sum())
    scores = {"maximum probability": confidence}
    matrices = {"start": ClassTransition(train.classes)().detach(), "class": state.transition(None).detach()}
    for views in ("weak", "strong"):
        matrices[views] = counted(model, state, train.select(rows), views, plan.seed)
    for name, matrix in matrices.items():
        for posterior in ("flattened", "plain"):
            decide = InstanceThreshold(classes=train.classes, posterior=posterior)  # pyright: ignore
            scores[f"{name}, {posterior}"] = confidence - decide(aligned, matrix).tau
    first, second = (view_of(model, state, train, plan.seed, number) for number in range(2))
    others = {
        "1 other view": first,
        "2 other views": (first + second) / 2,
        "own and 1 other": (first + aligned) / 2,
    }
    for name in ("class", "weak"):
        for views, answer in others.items():
            scores[f"{name}, {views}"] = confidence - image_part(answer, matrices[name], pseudo)
    return {
        "pseudo_label_accuracy": float(right.double().mean()),
        "utilisation": taken / len(train),
        "auroc": {name: binary_area_under_curve(score, right) for name, score in scores.items()},
        "purity": {
            name: float(right[score.argsort(descending=True, stable=True)[:taken]].double().mean())
            for name, score in scores.items()
        },
    }


def counted(
    model: TrainedClassifier, state: InstantState, labelled: LabelledImages, views: str, seed: int
) -> torch.Tensor:
    """The matrix of the frozen network's answers for views of the labelled pictures."""
    transition, generator = CountedTransition(labelled.classes, momentum=1.0), seeded(seed, 5)
    pool = strong_pool("auto", labelled.channels)
    for _ in range(16):
        made = weak_view(labelled.images.permute(0, 3, 1, 2), generator, flip=False)
        if views == "strong":
            made = strong_view(made, generator, pool)
        transition.update(labelled.labels, state.alignment(model.predict(made.permute(0, 2, 3, 1))))
    return transition()


def view_of(
    model: TrainedClassifier, state: InstantState, train: LabelledImages, seed: int, number: int
) -> torch.Tensor:
    """The aligned answer for another weak view of each picture."""
    made = weak_view(train.images.permute(0, 3, 1, 2), seeded(seed, 6, number), flip=False)
    return state.alignment(model.predict(made.permute(0, 2, 3, 1)))


def summary(runs: list[dict]) -> dict[str, object]:
    """Means; AUROC at least the peer's on how many seeds, and its worst difference; purity in points over
    the peer's."""
    result: dict[str, object] = {"seeds": [run["seed"] for run in runs]}
    for at in (key for key in runs[0] if key != "seed"):
        table = {}
        for name in runs[0][at]["auroc"]:
            area, pure = ([run[at][what][name] for run in runs] for what in ("auroc", "purity"))
            base, plain = (
                [run[at][what]["maximum probability"] for run in runs] for what in ("auroc", "purity")
            )
            gaps = [a - b for a, b in zip(area, base, strict=True)]
            table[name] = {
                "auroc": round(statistics.mean(area), 4),
                "at_least_peer": sum(gap >= 0 for gap in gaps),
                "worst_gap": round(min(gaps), 4),
                "purity": round(100 * statistics.mean(pure), 2),
                "purity_over_peer": round(
                    100 * statistics.mean(a - b for a, b in zip(pure, plain, strict=True)), 2
                ),
            }
        result[at] = table
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist10k", choices=["digits", "mnist10k", "pneumoniamnist"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--side", type=int, default=14)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/instant_selection.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in options.seeds:
        runs.append(quality(options.data, seed, options.side))
        machine = {"cpu": platform.machine(), "threads": 1, "torch": torch.__version__}
        facts = {"data": options.data, "side": options.side, "machine": machine}
        write_json(options.output, {**facts, "summary": summary(runs), "runs": runs})
    for at, table in summary(runs).items():
        print(at)
        for name, row in table.items() if isinstance(table, dict) else ():
            print("   ", name, row)


if __name__ == "__main__":
    main()
