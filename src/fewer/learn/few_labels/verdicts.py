"""What a finished run thinks of each unlabelled picture, and why: its pseudo-label, threshold, runner-up,
error rate and certificate; and which pictures are worth a human's label next."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fewer.core.device import seeded
from fewer.learn.data import LabelledImages
from fewer.learn.few_labels.augment import weak_view
from fewer.learn.few_labels.diary import Diary
from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.thresholds.guarantee import certificate
from fewer.learn.thresholds.instance import column
from fewer.learn.thresholds.instant import InstantState


@dataclass(frozen=True, slots=True)
class Verdicts:
    """One entry for each training picture, in its order."""

    pseudo: Int64[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    runner_up: Int64[Tensor, " n"]
    """The second most likely class."""
    accepted_share: Float[Tensor, " n"]
    """How often it was accepted, of the times it was drawn; NaN if never drawn."""
    threshold: Float[Tensor, " n"] | None = None
    """InstanT only, as the four below."""
    tau: Float[Tensor, " n"] | None = None
    accepted: Bool[Tensor, " n"] | None = None
    error_rate: Float[Tensor, " n"] | None = None
    """sum of T_is over i != s: how often other classes are taken for this one."""
    certificate: Float[Tensor, " n"] | None = None
    """Estimated margin over the runner-up; see `thresholds/guarantee.py`."""
    labelled: Bool[Tensor, " n"] | None = None
    """Whether its label was trained on."""

    def label_next(self, count: int) -> Int64[Tensor, " m"]:
        """Rows whose label would help most, of those without: accepted least often, then least confident."""
        share = self.accepted_share.nan_to_num(0.0)
        order = (share + 1e-3 * self.confidence).argsort(stable=True)
        return order[:count] if self.labelled is None else order[~self.labelled[order]][:count]

    def class_utilisation(self, classes: int) -> list[float | None]:
        """Mean accepted share of the pictures that each class was given."""
        known = ~self.accepted_share.isnan()
        shares = []
        for label in range(classes):
            rows = known & (self.pseudo == label)
            shares.append(float(self.accepted_share[rows].mean()) if bool(rows.any()) else None)
        return shares

    def as_csv(self, class_names: tuple[str, ...], files: tuple[str, ...] = ()) -> str:
        """A line for each picture."""
        columns: dict[str, list[object]] = {
            "row": list(range(len(self.pseudo))),
            **({"file": list(files)} if files else {}),
            **({} if self.labelled is None else {"labelled": self.labelled.int().tolist()}),
            "pseudo_label": [class_names[k] for k in self.pseudo.tolist()],
            "confidence": _rounded(self.confidence),
            "runner_up": [class_names[k] for k in self.runner_up.tolist()],
            "accepted_share": _rounded(self.accepted_share),
        }
        for name in ("threshold", "tau", "accepted", "error_rate", "certificate"):
            values = getattr(self, name)
            if values is not None:
                columns[name] = _rounded(values.float()) if name != "accepted" else values.int().tolist()
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return stream.getvalue()


@torch.no_grad()
def judge(
    model: TrainedClassifier,
    state: nn.Module,
    plan: SemiSupervisedPlan,
    train: LabelledImages,
    diary: Diary,
    rows: Int64[Tensor, " m"],
) -> Verdicts:
    """Looks at every training picture without augmentation; `rows` were trained on with their labels."""
    labelled = torch.zeros(len(train), dtype=torch.bool)
    labelled[rows] = True
    probabilities = model.predict(train.images)
    accepted_share = (diary.accepted / diary.seen).cpu()
    if not isinstance(state, InstantState):
        top = probabilities.topk(2, dim=1)
        best, runner_up = top.indices.unbind(1)
        return Verdicts(best, top.values[:, 0], runner_up, accepted_share, labelled=labelled)
    device = next(model.network.parameters()).device
    probabilities = state.alignment(probabilities.to(device)).cpu()
    top = probabilities.topk(2, dim=1)
    transition = _transitions(state, model, train).cpu()
    others = _other_views(state, model, train, plan) if plan.other_views() else None
    decision = state.threshold(probabilities, transition, others)
    into = column(transition, decision.pseudo)
    own = into.gather(1, decision.pseudo[:, None])[:, 0]
    return Verdicts(
        top.indices[:, 0],
        top.values[:, 0],
        top.indices[:, 1],
        accepted_share,
        decision.threshold,
        decision.tau,
        decision.mask,
        into.sum(1) - own,
        certificate(probabilities, transition, decision.pseudo),
        labelled,
    )


def _other_views(
    state: InstantState, model: TrainedClassifier, train: LabelledImages, plan: SemiSupervisedPlan
) -> Tensor:
    """The mean aligned answer for further weak views, as in training."""
    device, answers = next(model.network.parameters()).device, []
    for number in range(plan.other_views()):
        generator = seeded(plan.seed, 4, number)
        views = weak_view(train.images.permute(0, 3, 1, 2), generator, flip=plan.flip)
        answers.append(state.alignment(model.predict(views.permute(0, 2, 3, 1)).to(device)).cpu())
    return torch.stack(answers).mean(0)


def _transitions(state: InstantState, model: TrainedClassifier, train: LabelledImages) -> Tensor:
    parts = [state.transition(model.normalise(part)) for part in train.images.split(256)]
    return parts[0] if parts[0].ndim == 2 else torch.cat(parts)


def _rounded(values: Tensor) -> list[object]:
    return [round(value, 6) if value == value else "" for value in values.tolist()]
