"""Figures of a classifier from its probabilities: accuracy, balanced accuracy, AUC, calibration."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fewer.core.errors import DataError


@dataclass(frozen=True, slots=True)
class Figures:
    """All as fractions of 1, computed on `count` pictures."""

    accuracy: float
    balanced_accuracy: float
    """Mean of the recalls of the classes that occur."""
    auc: float
    """Area under the ROC curve; more than two classes: mean of one-against-rest. NaN if undefined."""
    calibration_error: float
    """Expected calibration error, 15 bins of equal width."""
    negative_log_likelihood: float
    recalls: tuple[float, ...]
    """Per class; NaN for a class that does not occur."""
    confusion: tuple[tuple[int, ...], ...]
    """Row: true class; column: predicted class."""
    count: int

    def as_dict(self) -> dict[str, object]:
        """JSON-able; NaN becomes None."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def evaluate_probabilities(probabilities: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Figures:
    """Figures of `probabilities` (rows sum to 1) against `labels` (0 .. classes - 1).

    Raises `DataError` for an empty set, a label outside the classes or probabilities that are not finite.
    """
    probabilities, labels = probabilities.detach().double().cpu(), labels.cpu()
    if len(labels) == 0:
        raise DataError("there are no labelled pictures to evaluate on")
    classes = probabilities.shape[1]
    if not torch.isfinite(probabilities).all():
        raise DataError("the classifier's probabilities hold NaN or infinity")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels lie in {int(labels.min())} .. {int(labels.max())}, the model knows 0 .. {classes - 1}"
        )
    confusion = confusion_matrix(probabilities.argmax(1), labels, classes)
    totals = confusion.sum(1)
    right = confusion.diagonal().double()
    recalls = torch.where(totals > 0, right / totals.clamp(min=1), torch.nan)
    picked = probabilities.gather(1, labels[:, None]).clamp(min=1e-12)
    return Figures(
        accuracy=float(right.sum() / totals.sum()),
        balanced_accuracy=float(recalls[totals > 0].mean()),
        auc=area_under_curve(probabilities, labels),
        calibration_error=calibration_error(probabilities, labels),
        negative_log_likelihood=float(-picked.log().mean()),
        recalls=tuple(recalls.tolist()),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        count=len(labels),
    )


def balanced_error(figures: Figures) -> float:
    """Standard error of the balanced accuracy for so many pictures of each class. One right and one wrong
    picture more in each (Agresti and Coull) keep a class of few, all of them right, from looking certain."""
    counts = torch.tensor(figures.confusion, dtype=torch.float64)
    totals = counts.sum(1)
    seen = totals > 0
    shares = (counts.diagonal() + 1)[seen] / (totals + 2)[seen]
    return float((shares * (1 - shares) / totals[seen]).sum().sqrt() / seen.sum())


def confusion_matrix(
    predicted: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], classes: int
) -> Int64[Tensor, "classes classes"]:
    """Counts; row: true class, column: predicted class."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def area_under_curve(probabilities: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> float:
    """Two classes: AUC of the second one's probability. More: unweighted mean of one-against-rest."""
    classes = probabilities.shape[1]
    if classes == 2:
        return binary_area_under_curve(probabilities[:, 1], labels == 1)
    areas = [binary_area_under_curve(probabilities[:, k], labels == k) for k in range(classes)]
    return float(torch.tensor(areas, dtype=torch.float64).mean())


def binary_area_under_curve(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Probability that a positive scores above a negative, ties counted half; NaN without both kinds."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    # The mean rank of a group of equal scores, as in the Mann-Whitney statistic.
    ranks = (counts.cumsum(0) - (counts - 1) / 2.0).double()[inverse]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(
    probabilities: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"], bins: int = 15
) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins."""
    gaps, weights = calibration_curve(probabilities, labels, bins)[2:]
    return float((gaps * weights).sum())


def calibration_curve(
    probabilities: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"], bins: int = 15
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per bin: mean confidence, accuracy, their distance and the share of pictures (0 in empty bins)."""
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(place, minlength=bins).double()
    confidences = torch.bincount(place, confidence, minlength=bins) / counts.clamp(min=1)
    accuracies = torch.bincount(place, right, minlength=bins) / counts.clamp(min=1)
    return confidences, accuracies, (confidences - accuracies).abs(), counts / counts.sum()


def _finite(value: object) -> object:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return [_finite(item) for item in value] if isinstance(value, (tuple, list)) else value
