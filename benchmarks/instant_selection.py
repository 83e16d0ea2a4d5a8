"""Which unlabelled pictures are rightly pseudo-labelled? AUROC of four scores, with the classifier frozen at
10 % of the run (the end of the warm-up), on all 8,000 pictures of mnist10k, 40 labels, five seeds.

    python benchmarks/instant_selection.py

`maximum_probability` is the peer; `instant_class` uses the matrix trained through the forward-corrected loss
(at this time still as it started), `instant_running` the one counted along the run, and `instant_counted` one
counted anew with the frozen classifier on 16 weak views of each of the 40 labelled pictures.
"""

import platform
import sys
import tempfile
from pathlib import Path

import torch

from fewer.core.checkpoint import latest_checkpoint
from fewer.core.device import seeded
from fewer.core.files import write_json
from fewer.learn import SemiSupervisedPlan, load_images, pick_labels, semi_supervised
from fewer.learn.data import LabelledImages
from fewer.learn.evaluate import binary_area_under_curve
from fewer.learn.few_labels.augment import weak_view
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network
from fewer.learn.thresholds.instance import InstanceThreshold
from fewer.learn.thresholds.instant import InstantState
from fewer.learn.thresholds.transition import ClassTransition, CountedTransition

sys.path.insert(0, str(Path(__file__).parent))
from instant_end_to_end import Stop, StopAt


def quality(seed: int) -> dict[str, float]:
    train = load_images(Path("data/mnist10k/mnist10k.npz"), size=14).train
    rows = pick_labels(train.labels, 4, train.classes, seed)
    plan = SemiSupervisedPlan(
        estimation="counted", steps=200, batch=16, ratio=5, rate=0.1, seed=seed, device="cpu"
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            semi_supervised(train, rows, plan=plan, checkpoints=Path(folder), progress=StopAt(20))
        except Stop:
            found = latest_checkpoint(Path(folder))
    assert found is not None
    network_plan = NetworkPlan(name=plan.network, classes=10, height=14, width=14)
    network, state = build_network(network_plan), InstantState(plan, 1, 10, len(train))
    for name, module in (("network", network), ("method", state)):
        own = {k.removeprefix(f"{name}/"): v for k, v in found.tensors.items() if k.startswith(f"{name}/")}
        module.load_state_dict(own)
    model = TrainedClassifier(network, network_plan, train.class_names, *train.mean_and_deviation())
    aligned = state.alignment(model.predict(train.images))
    confidence, pseudo = aligned.max(1)
    right = pseudo == train.labels
    scores = {"maximum_probability": confidence}
    matrices = {
        "class": ClassTransition(10)().detach(),
        "running": state.transition(None),
        "counted": counted(model, state, train.select(rows), seed),
    }
    for name, matrix in matrices.items():
        for posterior in ("flattened", "plain"):
            decide = InstanceThreshold(classes=10, posterior=posterior)  # pyright: ignore
            scores[f"instant_{name}_{posterior}"] = confidence - decide(aligned, matrix).tau
    found_areas = {name: binary_area_under_curve(score, right) for name, score in scores.items()}
    return {"seed": seed, "pseudo_label_accuracy": float(right.double().mean()), **found_areas}


def counted(
    model: TrainedClassifier, state: InstantState, labelled: LabelledImages, seed: int
) -> torch.Tensor:
    transition, generator = CountedTransition(labelled.classes, momentum=1.0), seeded(seed, 5)
    pictures = labelled.images.permute(0, 3, 1, 2)
    for _ in range(16):
        views = weak_view(pictures, generator, flip=False).permute(0, 2, 3, 1)
        transition.update(labelled.labels, state.alignment(model.predict(views)))
    return transition()


def main() -> None:
    torch.set_num_threads(1)
    runs = [quality(seed) for seed in range(5)]
    better = {
        name: sum(run[name] >= run["maximum_probability"] for run in runs)
        for name in runs[0]
        if name.startswith("instant")
    }
    machine = {"cpu": platform.machine(), "threads": 1, "torch": torch.__version__}
    result = {"machine": machine, "seeds_at_least_maximum_probability": better, "runs": runs}
    write_json(Path("benchmarks/results/instant_selection.json"), result)


if __name__ == "__main__":
    main()
