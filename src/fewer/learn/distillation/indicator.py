"""Is distilling worth it? The paper's indicator: a small random subset's accuracy foretells the
distilled set's
(Li et al., arXiv 2407.14429).

Over several data sets, logit(distilled) = u + v · logit(random) is fitted by least squares; its quality
is the
correlation and the error on each data set when it is left out. For a new data set only random subsets are
trained, which costs a few per cent of distilling.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.architectures import NetworkPlan, build_network
from fewer.learn.distillation.scores import Score, TestPictures, score_random
from fewer.learn.distillation.task import Source
from fewer.learn.distillation.training import Recipe

WORTH_IT = 0.02
"""Gain (balanced accuracy) from which distilling is recommended."""
ALREADY_GOOD = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class IndicatorPoint:
    """One data set in the study: balanced accuracies at the same number of images per class."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str
    random: Annotated[float, Field(ge=0, le=1)]
    distilled: Annotated[float, Field(ge=0, le=1)]
    full: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True, slots=True)
class IndicatorFit:
    """The line, and how far it can be trusted."""

    offset: float
    slope: float
    residual: float
    """Standard deviation of the leave-one-out errors on the logit scale."""
    pearson: float
    pearson_low: float
    pearson_high: float
    """95 % bootstrap interval over data sets."""
    spearman: float
    leave_one_out_error: float
    """Mean absolute error in balanced accuracy of sets that the line had not seen."""
    sets: int

    def predict(self, random_accuracy: float) -> tuple[float, float, float]:
        """Distilled balanced accuracy: expected, and a range of 90 %."""
        middle = self.offset + self.slope * float(_logit(random_accuracy))
        return tuple(float(_logistic(middle + k * 1.645 * self.residual)) for k in (0, -1, 1))  # pyright: ignore

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def fit_indicator(points: Sequence[IndicatorPoint], draws: int = 2000, seed: int = 0) -> IndicatorFit:
    """Raises `DataError` for fewer than 4 data sets."""
    if len(points) < 4:
        raise DataError(
            f"{len(points)} data sets; an indicator needs at least 4 to be judged by leaving one out"
        )
    random = np.array([point.random for point in points])
    distilled = np.array([point.distilled for point in points])
    x, y = _logit(random), _logit(distilled)
    slope, offset = _line(x, y)
    errors, logit_errors = [], []
    for left_out in range(len(points)):
        kept = np.arange(len(points)) != left_out
        own_slope, own_offset = _line(x[kept], y[kept])
        guess = own_offset + own_slope * x[left_out]
        logit_errors.append(guess - y[left_out])
        errors.append(abs(float(_logistic(guess)) - distilled[left_out]))
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(draws):
        rows = generator.integers(len(points), size=len(points))
        if np.ptp(random[rows]) > 0 and np.ptp(distilled[rows]) > 0:
            samples.append(_correlation(random[rows], distilled[rows]))
    # Where all data sets are equally easy there is nothing to correlate.
    low, high = np.percentile(samples, [2.5, 97.5]) if samples else (-1.0, 1.0)
    return IndicatorFit(
        float(offset),
        float(slope),
        float(np.std(logit_errors)),
        _correlation(random, distilled),
        float(low),
        float(high),
        _correlation(_ranks(random), _ranks(distilled)),
        float(np.mean(errors)),
        len(points),
    )


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `fewer learn indicator` says of one data set."""

    random: Score
    expected: float
    low: float
    high: float
    advice: str
    seconds: float


def forecast(
    train: LabelledImages,
    holdout: LabelledImages | None,
    images_per_class: int,
    fit: IndicatorFit,
    *,
    network: NetworkPlan,
    recipe: Recipe,
    draws: int = 5,
    networks: int = 2,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Forecast:
    """Trains `draws` random subsets (of `seed`) x `networks` networks and reads the line. Without `holdout`,
    a fifth of `train` is set aside."""
    began = time.monotonic()
    if holdout is None:
        train, holdout = set_aside(train, 0.2, seed)
    source = Source.of(train, torch.device(device))
    model = build_network(network, train.channels, train.size, train.classes).to(device)
    judged = TestPictures.of(holdout, source.mean, source.deviation, device)
    seeds = tuple(range(networks))
    score = score_random(source, model, judged, recipe, images_per_class, draws, seeds, seed * draws)
    expected, low, high = fit.predict(score.balanced_accuracy)
    return Forecast(score, expected, low, high, _advice(score, expected, low), time.monotonic() - began)


def set_aside(data: LabelledImages, share: float, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """(rest, held out), the same share of every class, at least one picture each."""
    held = []
    for label in range(data.classes):
        rows = torch.nonzero(data.labels == label).flatten()
        if len(rows) < 2:
            raise DataError(
                f"class {data.class_names[label]!r} has {len(rows)} pictures; 2 are needed to hold one out"
            )
        order = torch.randperm(len(rows), generator=seeded(seed, 701, label))
        held.append(rows[order[: max(1, round(share * len(rows)))]])
    out = torch.zeros(len(data), dtype=torch.bool)
    out[torch.cat(held)] = True
    return data.select(torch.nonzero(~out).flatten()), data.select(torch.nonzero(out).flatten())


def _advice(score: Score, expected: float, low: float) -> str:
    gain = expected - score.balanced_accuracy
    if score.balanced_accuracy >= ALREADY_GOOD:
        return "not needed: random pictures already train nearly as well as can be"
    if low > score.balanced_accuracy or gain >= WORTH_IT:
        return f"worth it: about {100 * gain:.0f} points over random pictures are expected"
    return "not worth it at this number of images per class: little gain expected; take more images per class"


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    spread = x - x.mean()
    total = float((spread**2).sum())
    slope = float((spread * (y - y.mean())).sum() / total) if total > 1e-12 else 0.0
    return slope, float(y.mean() - slope * x.mean())


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / length) if length > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks: equal values share one."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]


def _logit(value: float | np.ndarray) -> np.ndarray:
    clipped = np.clip(value, 1e-3, 1 - 1e-3)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _logistic(value: float | np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(value))))
