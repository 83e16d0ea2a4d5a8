"""How good a set is: networks trained on it by one recipe, judged on real test pictures.

Random, distilled and full sets go through the same function with the same recipe; the last epoch counts,
never the best. Several sets x several networks give mean and spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from fewer.core.errors import ConfigError, DataError
from fewer.core.progress import Progress
from fewer.learn.data import LabelledImages, in_channels, resized
from fewer.learn.distillation.architectures import (
    Classifier,
    NetworkPlan,
    build_network,
    refuse_batch_norm,
)
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.selection import random_rows
from fewer.learn.distillation.task import Source, normalise
from fewer.learn.distillation.training import Recipe, probabilities, train_networks
from fewer.learn.evaluate import evaluate_probabilities
from fewer.learn.graphed import Graphs
from fewer.learn.picture_files import fit_of

ROUND, MOST_NETWORKS, STEADY = 5, 20, 0.003
"""Networks at a time, at most, and the standard error (a fraction of 1) that is small enough."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean and spread (standard deviation) over `runs` trained networks, as fractions of 1."""

    accuracy: float
    balanced_accuracy: float
    auc: float
    accuracy_spread: float
    balanced_spread: float
    auc_spread: float
    runs: int
    each: tuple[float, ...]
    """Balanced accuracy of every run."""

    def as_dict(self) -> dict[str, object]:
        return {name: round(v, 5) if isinstance(v, float) else v for name, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class TestPictures:
    """Real pictures to be judged on, normalised like the set."""

    __test__ = False  # no test case, whatever pytest thinks of the name
    images: Float[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"]

    @classmethod
    def of(
        cls,
        data: LabelledImages,
        mean: Float[Tensor, " channels"],
        deviation: Float[Tensor, " channels"],
        device: torch.device | str = "cpu",
    ) -> TestPictures:
        data = data.labelled()
        return cls(normalise(data.as_float(), mean, deviation).to(device), data.labels)


def score_training(
    network: Classifier,
    images: Float[Tensor, "n channels height width"],
    labels: Shaped[Tensor, " n ..."],
    test: TestPictures,
    recipe: Recipe,
    seeds: tuple[int, ...],
    progress: Progress | None = None,
    graphs: Graphs | None = None,
) -> Score:
    """Trains one network per seed on (images, labels) and judges each on `test`."""
    stacked = train_networks(network, images, labels, recipe, seeds, progress, graphs)
    answers = probabilities(network, stacked, test.images).cpu()
    figures = [
        evaluate_probabilities(one.double() / one.double().sum(1, keepdim=True), test.labels)
        for one in answers
    ]
    return summarise([(f.accuracy, f.balanced_accuracy, f.auc) for f in figures])


def score_distilled(
    distilled: DistilledSet,
    test: LabelledImages,
    *,
    network: NetworkPlan | None = None,
    recipe: Recipe | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Score:
    """A file's score with its own recipe and network, unless others are given. Raises `DataError`."""
    test = fit_to(distilled, test)
    plan = network or stored_network(distilled)
    refuse_batch_norm(plan)
    sheet = distilled.datasheet
    model = build_network(plan, sheet.channels, sheet.image_size, len(sheet.class_names)).to(device)
    judged = TestPictures.of(test, distilled.mean, distilled.deviation, device)
    return score_training(
        model,
        distilled.normalised().to(device),
        distilled.targets().to(device),
        judged,
        recipe or distilled.recipe(),
        seeds,
        progress,
    )


def score_steadily(
    judge: Callable[[tuple[int, ...]], Score], networks: int | None = None, first_seed: int = 0
) -> Score:
    """`judge(seeds)` with `networks` networks, five at a time; None: with more until chance hardly shows.

    That is when the standard error of the mean balanced accuracy is below 0.3 points, at the latest after
    twenty, which is what published evaluations train. Two such means of other networks differ by 1.5 points
    only in one of some thousand cases.
    """
    rounds: list[Score] = []
    done = 0
    while True:
        size = min(ROUND, (networks or MOST_NETWORKS) - done)
        rounds.append(judge(tuple(range(first_seed + done, first_seed + done + size))))
        done += size
        joined = joined_runs(rounds)
        steady = networks is None and joined.balanced_spread / done**0.5 < STEADY
        if steady or done == (networks or MOST_NETWORKS):
            return joined


def joined_runs(scores: list[Score]) -> Score:
    """Scores of the same set by other networks as one; the spread is that between all networks."""
    counts = torch.tensor([score.runs for score in scores], dtype=torch.float64)
    means, deviations = (
        torch.tensor([[getattr(score, name) for name in names] for score in scores], dtype=torch.float64)
        for names in (
            ("accuracy", "balanced_accuracy", "auc"),
            ("accuracy_spread", "balanced_spread", "auc_spread"),
        )
    )
    total = counts.sum()
    mean = (counts[:, None] * means).sum(0) / total
    squares = (counts - 1)[:, None] * deviations.square() + counts[:, None] * (means - mean).square()
    spread = (squares.sum(0) / (total - 1).clamp(min=1)).sqrt()
    each = tuple(value for score in scores for value in score.each)
    return Score(*mean.tolist(), *spread.tolist(), int(total), each)


def stored_network(distilled: DistilledSet) -> NetworkPlan:
    """The network the set was made with."""
    from fewer.core.config import validate

    return (
        validate(NetworkPlan, dict(distilled.datasheet.network))
        if distilled.datasheet.network
        else NetworkPlan()
    )


def side_of(distilled: DistilledSet) -> int | None:
    """The side of its pictures, None where they are not square."""
    height, width = distilled.datasheet.image_size
    return height if height == width else None


def fit_to(distilled: DistilledSet, data: LabelledImages) -> LabelledImages:
    """`data` in the file's colours and picture size, its classes renumbered by name. Raises `DataError` where
    they differ.
    """
    sheet = distilled.datasheet
    data = data.labelled()
    data = replace(data, images=in_channels(data.images, sheet.channels))
    data = resized(data, sheet.image_size, fit_of(sheet.method_config))
    if data.class_names == sheet.class_names:
        return data
    unknown = [name for name in data.class_names if name not in sheet.class_names]
    if unknown:
        raise DataError(
            f"class {unknown[0]!r} is not in the distilled set; it has {list(sheet.class_names)[:10]}"
        )
    places = torch.tensor([sheet.class_names.index(name) for name in data.class_names])
    return LabelledImages(data.images, places[data.labels], sheet.class_names)


def score_random(
    source: Source,
    network: Classifier,
    test: TestPictures,
    recipe: Recipe,
    images_per_class: int,
    draws: int,
    seeds: tuple[int, ...],
    first_draw: int = 0,
    graphs: Graphs | None = None,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> Score:
    """The control: `draws` random subsets with as many pictures per class, the same recipe and networks
    each. With `teacher` (logits of pictures) they carry its soft labels instead of their own.
    """
    runs = []
    for draw in range(first_draw, first_draw + draws):
        rows = random_rows(source, images_per_class, draw).to(source.images.device)
        with torch.no_grad():
            answers = None if teacher is None else teacher(source.images[rows]).softmax(1)
        runs.append(
            score_training(
                network,
                source.images[rows],
                source.labels[rows] if answers is None else answers,
                test,
                recipe,
                tuple(s + 1000 * draw for s in seeds),
                graphs=graphs,
            )
        )
    return pooled(runs)


def score_full(
    source: Source,
    network: Classifier,
    test: TestPictures,
    recipe: Recipe,
    seeds: tuple[int, ...],
    progress: Progress | None = None,
) -> dict[str, Score]:
    """The ceiling: all real pictures, drawn as they are (`plain`) and every class equally often
    (`balanced`).
    """
    return {
        name: score_training(
            network,
            source.images,
            source.labels,
            test,
            replace(recipe, balanced=name == "balanced"),
            seeds,
            progress,
        )
        for name in ("plain", "balanced")
    }


def pooled(scores: list[Score]) -> Score:
    """Several sets as one: means over all; the spreads are those *between sets* (of the sets' means)."""
    if not scores:
        raise ConfigError("there is no score to pool")
    means = torch.tensor([(s.accuracy, s.balanced_accuracy, s.auc) for s in scores], dtype=torch.float64)
    deviations = means.std(0, correction=1) if len(scores) > 1 else torch.zeros(3, dtype=torch.float64)
    mean = means.mean(0).tolist()
    each = tuple(value for score in scores for value in score.each)
    return Score(*mean, *deviations.tolist(), sum(s.runs for s in scores), each)


def summarise(runs: list[tuple[float, float, float]]) -> Score:
    """Mean and spread of (accuracy, balanced accuracy, AUC)."""
    values = torch.tensor(runs, dtype=torch.float64)
    spread = values.std(0, correction=1) if len(runs) > 1 else torch.zeros(3, dtype=torch.float64)
    return Score(*values.mean(0).tolist(), *spread.tolist(), len(runs), tuple(values[:, 1].tolist()))
