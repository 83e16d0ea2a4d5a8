"""From a few labelled and many unlabelled pictures to a classifier.

The journey: check the data -> for each step draw labelled and unlabelled rows -> weak and strong views on
the device -> the method's loss (thresholds/) -> SGD -> moving average of the weights, which is the result ->
figures on held-out pictures, and what the threshold thinks of every unlabelled picture.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from fewer.core.config import validate
from fewer.core.device import isolated_randomness, pick_device, pick_dtype, seeded
from fewer.core.errors import DataError
from fewer.core.progress import Progress, SilentProgress
from fewer.core.train import FitPlan, fit
from fewer.learn.data import UNLABELLED, LabelledImages
from fewer.learn.evaluate import Figures
from fewer.learn.few_labels.augment import strong_pool, weak_view
from fewer.learn.few_labels.diary import Diary
from fewer.learn.few_labels.plan import MethodName, SemiSupervisedPlan
from fewer.learn.few_labels.verdicts import Verdicts, judge
from fewer.learn.few_labels.views import Views
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network
from fewer.learn.thresholds.batch import Batch
from fewer.learn.thresholds.instant import InstantState, recount
from fewer.learn.thresholds.methods import METHODS

RECOUNT_VIEWS, RECOUNT_MOST = 8, 1024
"""Weak views of each labelled picture in a count of the transition, and pictures in it at most."""


@dataclass(frozen=True, slots=True)
class SemiSupervisedResult:
    """A run's outcome."""

    model: TrainedClassifier
    labelled: Int64[Tensor, " m"]
    """Row numbers of the labelled pictures."""
    curves: dict[str, list[float | None]]
    """Loss, threshold, utilisation, purity over the run; see `Diary`."""
    verdicts: Verdicts
    """What the method thinks of each unlabelled picture at the end."""
    state: nn.Module
    """The method's running state (for InstanT: alignment and transition)."""
    seconds: float
    steps_made: int
    figures: Figures | None = None
    """On the test pictures, if there were any."""


def semi_supervised(
    train: LabelledImages,
    labelled: Int64[Tensor, " m"] | Sequence[int] | None = None,
    method: MethodName | None = None,
    *,
    plan: SemiSupervisedPlan | None = None,
    test: LabelledImages | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> SemiSupervisedResult:
    """Trains on the pictures at rows `labelled` with their labels and on all of `train` without.

    `labelled=None` takes every picture whose label is not -1. Labels of other rows are used for nothing
    but the report's purity (None where there are none). Raises `DataError` when a class has no labelled
    picture or nothing is left unlabelled. The run is repeated bit for bit by the same plan on the same CPU,
    also after a resume.

        from fewer.learn import load_images, pick_labels, semi_supervised
        splits = load_images("data/mnist10k/mnist10k.npz")
        rows = pick_labels(splits.train.labels, 4, splits.train.classes, seed=0)
        result = semi_supervised(splits.train, rows, "instant", test=splits.test)
    """
    plan = plan or SemiSupervisedPlan()
    plan = validate(SemiSupervisedPlan, replace(plan, method=method) if method else plan)
    progress = progress or SilentProgress()
    rows = _check(train, labelled, plan)
    run = _Run(plan, train, rows)
    if plan.batch * plan.ratio > len(train) and METHODS[plan.method].unlabelled:
        taken = plan.batch * plan.ratio
        progress.say(f"a batch takes {taken} of {len(train)} pictures: they are drawn with replacement")
    optimizer = _optimizer(run.network, run.state, plan)
    result = fit(
        FitPlan(
            steps=plan.steps,
            schedule="seven-sixteenths",
            clip_norm=None,
            ema_decay=plan.ema_decay(),
            checkpoint_folder=checkpoints,
            checkpoint_every=max(50, plan.steps // 20),
            # A GPU works on while the next views are drawn; a loss that is not finite shows ten steps later.
            look_every=1 if run.device.type == "cpu" else 10,
            resume=resume,
            seed=plan.seed,
            identity=_identity(plan, train, rows),
        ),
        {"network": run.network, "method": run.state, "diary": run.diary},
        optimizer,
        run.step,
        run.draw,
        progress,
    )
    model = run.classifier(result.averages["network"])
    figures = model.evaluate(test) if test is not None else None
    if figures is not None:
        model = replace(model, figures=figures.as_dict())
    verdicts = judge(model, run.state, plan, train, run.diary, rows)
    curves = run.diary.curves()
    return SemiSupervisedResult(
        model, rows, curves, verdicts, run.state, result.seconds, len(result.losses), figures
    )


def _identity(plan: SemiSupervisedPlan, train: LabelledImages, rows: Tensor) -> dict[str, str]:
    """What decides the result besides the number of steps; where it is computed does not."""
    settings = {name: str(value) for name, value in asdict(plan).items() if name not in ("steps", "device")}
    labels = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    return {"pictures": train.fingerprint(), "labelled rows": labels, **settings}


class _Run:
    """The parts of one run; `draw` and `step` are what `core.train.fit` calls."""

    def __init__(self, plan: SemiSupervisedPlan, train: LabelledImages, rows: Tensor) -> None:
        self.plan, self.train, self.method = plan, train, METHODS[plan.method]
        self.device = pick_device(plan.device)
        self.dtype = pick_dtype(plan.dtype, self.device)
        height, width = train.size
        self.network_plan = NetworkPlan(
            name=plan.network, channels=train.channels, classes=train.classes, height=height, width=width
        )
        self.network = build_network(self.network_plan, plan.seed, plan.network_folder).to(self.device)
        if self.device.type == "cuda":
            self.network = self.network.to(memory_format=torch.channels_last)
        with isolated_randomness(plan.seed):
            self.state = self.method.state(plan, train.channels, train.classes, len(train)).to(self.device)
        self.diary = Diary(plan.steps, len(train)).to(self.device)
        self.labels = train.labels.to(self.device)
        self.hidden = self.labels.index_fill(0, rows.to(self.device), UNLABELLED)
        self.rows = rows
        self.mean, self.deviation = train.mean_and_deviation()
        self.views = Views(
            train.images.permute(0, 3, 1, 2).contiguous().to(self.device),
            self.mean,
            self.deviation,
            plan.flip,
            strong_pool(plan.strong, train.channels),
            self.method.strong,
            max(self.method.again, plan.other_views()),
        )

    def draw(self, step: int, generator: torch.Generator) -> tuple[int, Tensor, Tensor]:
        """Row numbers of the labelled and unlabelled pictures of a step."""
        labelled = self.rows[_draw(len(self.rows), self.plan.batch, generator)]
        count = self.plan.batch * self.plan.ratio if self.method.unlabelled else 0
        return step, labelled, _draw(len(self.train), count, generator)

    def step(self, drawn: tuple[int, Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        step, labelled, unlabelled = drawn
        if self.plan.method == "instant" and self.plan.estimation == "recounted":
            self._recount(step)
        self.network.train()
        views = self.views(labelled, unlabelled, generator)
        batch = Batch(
            labelled=views.labelled,
            # Not waited for: a copy that waits would let the GPU run dry while the next step is launched.
            labels=self.labels[labelled.to(self.device, non_blocking=True)],
            weak=views.weak,
            strong=views.strong,
            again=views.again,
            rows=unlabelled.to(self.device, non_blocking=True),
            progress=step / self.plan.steps,
            generator=generator,
        )
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            result = self.method.step(self.network, batch, self.state, self.plan)
        if self.method.unlabelled:
            self.diary.note(step, result, batch.rows, self.hidden[batch.rows])
        return {"loss": result.loss, "used": result.weights.sum() / max(1, len(result.weights))}

    def _recount(self, step: int) -> None:
        """Every `recount` steps from the end of the warm-up on, on weak views of the labelled pictures."""
        since = step - math.ceil(self.plan.warm_up * self.plan.steps)
        if since < 0 or since % self.plan.recount:
            return
        generator = seeded(self.plan.seed, step, 3)
        rows = self.rows.repeat(RECOUNT_VIEWS)
        if len(rows) > RECOUNT_MOST:
            rows = rows[torch.randperm(len(rows), generator=generator)[:RECOUNT_MOST]]
        there = rows.to(self.device, non_blocking=True)
        views = weak_view(self.views.images[there], generator, flip=self.plan.flip)
        assert isinstance(self.state, InstantState)
        recount(self.network, self.state, self.views.normalise(views), self.labels[there])

    def classifier(self, average: dict[str, Tensor]) -> TrainedClassifier:
        """The network with averaged weights and the latest batch-norm statistics."""
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(average[name])
        return TrainedClassifier(
            self.network.eval(),
            self.network_plan,
            self.train.class_names,
            self.mean,
            self.deviation,
            {**asdict(self.plan), "labelled_pictures": len(self.rows), "pictures": len(self.train)},
        )


def _draw(available: int, wanted: int, generator: torch.Generator) -> Int64[Tensor, " wanted"]:
    """Without replacement where there are enough."""
    if wanted <= available:
        return torch.randperm(available, generator=generator)[:wanted]
    return torch.randint(available, (wanted,), generator=generator)


def _optimizer(network: nn.Module, state: nn.Module, plan: SemiSupervisedPlan) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum for the network; for T its own rates (0.01 class, 0.001 instance)."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, object]] = [
        {"params": weights, "weight_decay": plan.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    of_transition = list(state.parameters())
    if of_transition:
        one_matrix = plan.estimation == "class"  # the counted ones have no parameters
        groups.append(
            {
                "params": of_transition,
                "lr": 0.01 if one_matrix else 0.001,
                "weight_decay": 0.0 if one_matrix else 5e-4,
                "nesterov": False,
            }
        )
    return torch.optim.SGD(groups, lr=plan.rate, momentum=0.9, nesterov=True)


def _check(
    train: LabelledImages, labelled: Tensor | Sequence[int] | None, plan: SemiSupervisedPlan
) -> Int64[Tensor, " m"]:
    """The labelled rows. Raises `DataError` for what cannot be trained on."""
    if len(train) == 0:
        raise DataError("there are no training pictures")
    if labelled is None:
        rows = torch.nonzero(train.labels != UNLABELLED).flatten()
    else:
        rows = torch.as_tensor(labelled, dtype=torch.long)
        outside = rows[(rows < 0) | (rows >= len(train))]
        if len(outside):
            raise DataError(f"labelled row {int(outside[0])} is outside 0 .. {len(train) - 1}")
        unknown = rows[train.labels[rows] == UNLABELLED]
        if len(unknown):
            raise DataError(f"row {int(unknown[0])} is given as labelled but has no label")
    counts = torch.bincount(train.labels[rows], minlength=train.classes)
    if bool((counts == 0).any()):
        name = train.class_names[int(counts.argmin())]
        raise DataError(f"class {name!r} has no labelled picture; label at least one, or leave the class out")
    if METHODS[plan.method].unlabelled and len(rows.unique()) == len(train):
        raise DataError(
            "every picture is labelled, none is left to learn from without a label; use --method labels-only"
        )
    return rows
