"""What happened during a run, kept in buffers so that a checkpoint carries it through stop and resume."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from fewer.learn.thresholds.batch import Outcome

CURVES = (
    "loss",
    "supervised",
    "unsupervised",
    "threshold",
    "threshold_spread",
    "utilisation",
    "confidence",
)
"""Means over the steps of a stretch; spread is the standard deviation over a batch."""


class Diary(nn.Module):
    """Means over at most `points` stretches of the run; per unlabelled image, how often it was accepted."""

    sums: Tensor
    counts: Tensor
    right: Tensor
    seen: Tensor
    accepted: Tensor

    def __init__(self, steps: int, unlabelled: int, points: int = 60) -> None:
        super().__init__()
        self.steps, self.points = steps, min(points, steps)
        self.register_buffer("sums", torch.zeros(self.points, len(CURVES), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(self.points, dtype=torch.float64))
        # Of pseudo-labels with known truth: weight accepted, of it right, right among as many of them that
        # are most confident.
        self.register_buffer("right", torch.zeros(self.points, 3, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(unlabelled, dtype=torch.int64))
        self.register_buffer("accepted", torch.zeros(unlabelled, dtype=torch.float32))

    @torch.no_grad()
    def note(
        self, step: int, result: Outcome, rows: Int64[Tensor, " batch"], truth: Int64[Tensor, " batch"]
    ) -> None:
        """Adds one step; `truth` is -1 where it is not known, or was trained on: a picture whose label is in
        the batches tells nothing about pseudo-labels. It is used for reporting alone."""
        place = step * self.points // self.steps
        weights = result.weights
        figures = (
            result.loss,
            result.supervised,
            result.unsupervised,
            result.threshold.mean(),
            result.threshold.std(correction=0),
            weights.mean(),
            result.confidence.mean(),
        )
        self.sums[place] += torch.stack([figure.detach().double() for figure in figures])
        self.counts[place] += 1
        known = truth >= 0
        correct = (result.pseudo == truth) & known
        accepted = (weights * known).sum()
        # A constant threshold that accepts as many takes the most confident ones.
        order = torch.where(known, result.confidence, -1.0).argsort(descending=True, stable=True)
        constant = torch.arange(len(rows), device=rows.device) < accepted.round()
        self.right[place, 0] += accepted
        self.right[place, 1] += (weights * correct).sum()
        self.right[place, 2] += (correct[order] * constant).sum()
        ones = torch.ones_like(rows)
        self.seen.index_add_(0, rows, ones)
        self.accepted.index_add_(0, rows, weights)

    def curves(self) -> dict[str, list[float | None]]:
        """Lists of equal length: `step` and one for each figure; None where nothing is known."""
        used = torch.nonzero(self.counts > 0).flatten()
        means = (self.sums / self.counts.clamp(min=1)[:, None])[used]
        result: dict[str, list[float | None]] = {
            "step": [round(float((place + 1) * self.steps / self.points), 1) for place in used]
        }
        for number, name in enumerate(CURVES):
            result[name] = [float(value) for value in means[:, number]]
        weight, right, constant = self.right[used].unbind(1)
        result["purity"] = _shares(right, weight)
        result["purity_constant"] = _shares(constant, weight)
        return result


def _shares(part: Tensor, whole: Tensor) -> list[float | None]:
    return [float(p / w) if w > 0 else None for p, w in zip(part, whole, strict=True)]
