"""What every matching loss is given: the real pictures by class, the synthetic ones, networks and
randomness.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.architectures import Classifier, build_network, refuse_batch_norm
from fewer.learn.distillation.augment import Augmentation, draw_augmentation
from fewer.learn.distillation.formation import decode
from fewer.learn.distillation.plan import DistillPlan
from fewer.learn.distillation.stacked import Parameters, fresh_parameters
from fewer.learn.graphed import Graphs


@dataclass(frozen=True, slots=True)
class Source:
    """Real pictures, normalised, sorted by class: class c has rows starts[c] .. starts[c + 1]."""

    images: Float[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"]
    starts: tuple[int, ...]
    mean: Float[Tensor, " channels"]
    deviation: Float[Tensor, " channels"]
    order: Int64[Tensor, " n"]
    """Row i here is row order[i] of the data it was made from."""
    names: tuple[str, ...] = ()
    """Of the classes, for messages."""

    @classmethod
    def of(
        cls,
        data: LabelledImages,
        device: torch.device,
        statistics: tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]] | None = None,
    ) -> Source:
        """Normalises by `statistics` (mean, deviation), by default the data's own. Raises `DataError`."""
        counts = data.counts()
        if len(counts) < 2 or int((counts > 0).sum()) < 2:
            raise DataError(f"{int((counts > 0).sum())} class has pictures; at least 2 are needed to distil")
        empty = [name for name, count in zip(data.class_names, counts.tolist(), strict=True) if count == 0]
        if empty:
            raise DataError(f"class {empty[0]!r} has no training picture; leave it out of the data")
        mean, deviation = statistics or data.mean_and_deviation()
        known = torch.nonzero(data.labels >= 0).flatten()
        order = known[torch.argsort(data.labels[known], stable=True)]
        images = normalise(data.select(order).as_float(), mean, deviation)
        starts = (0, *counts.cumsum(0).tolist())
        return cls(
            images.to(device), data.labels[order].to(device), starts, mean, deviation, order, data.class_names
        )

    @property
    def classes(self) -> int:
        return len(self.starts) - 1

    def count(self, label: int) -> int:
        return self.starts[label + 1] - self.starts[label]

    def called(self, label: int) -> str:
        """The class in a message."""
        return repr(self.names[label]) if self.names else str(label)

    def of_class(self, label: int) -> Float[Tensor, "m channels height width"]:
        return self.images[self.starts[label] : self.starts[label + 1]]

    def rows(self, per_class: int, generator: torch.Generator) -> Int64[Tensor, "classes per_class"]:
        """Random row numbers; a class with fewer pictures gives some of them more than once."""
        drawn = []
        for label in range(self.classes):
            count = self.count(label)
            if count >= per_class:
                own = torch.randperm(count, generator=generator)[:per_class]
            else:
                own = torch.randint(count, (per_class,), generator=generator)
            drawn.append(own + self.starts[label])
        return torch.stack(drawn)

    def sample(
        self, per_class: int, generator: torch.Generator
    ) -> Float[Tensor, "classes per_class channels height width"]:
        """Random pictures of every class."""
        return self.images[self.rows(per_class, generator).to(self.images.device)]


@dataclass(slots=True)
class Synthetic:
    """What is learnt. Rows are ordered by class; `images` has requires_grad while it is being learnt."""

    images: Float[Tensor, "n channels height width"]
    classes: int
    factor: int = 1
    label_logits: Float[Tensor, "m classes"] | None = None
    """Learnt soft labels before softmax, one row per decoded picture."""
    learning_rate: Float[Tensor, ""] | None = None
    """Of the student (MTT)."""

    def decoded(self) -> Float[Tensor, "m channels height width"]:
        return decode(self.images, self.factor)

    def by_class(self) -> Float[Tensor, "classes per_class channels height width"]:
        pictures = self.decoded()
        return pictures.unflatten(0, (self.classes, len(pictures) // self.classes))

    def labels(self) -> Int64[Tensor, " m"]:
        per_class = len(self.images) * self.factor**2 // self.classes
        return torch.arange(self.classes, device=self.images.device).repeat_interleave(per_class)

    def targets(self) -> Tensor:
        """Learnt soft labels (m, classes) where there are any, else class numbers (m,)."""
        return self.labels() if self.label_logits is None else self.label_logits.softmax(1)

    def learnt(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint must hold."""
        found = {
            "images": self.images,
            "label_logits": self.label_logits,
            "learning_rate": self.learning_rate,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Task:
    """One run: pure functions of (plan.seed, step), which is what makes a resumed run equal to an
    unbroken one.
    """

    source: Source
    network: Classifier
    plan: DistillPlan
    device: torch.device
    trajectories: dict[str, Tensor] | None = None
    """Parameters of networks trained on the real set: name -> (epochs + 1, experts, …)."""
    graphs: Graphs = field(default_factory=Graphs)
    """What a GPU replays instead of launching it kernel by kernel."""

    @classmethod
    def of(cls, data: LabelledImages, plan: DistillPlan, device: torch.device) -> Task:
        """`plan` is resolved. Under differential privacy the normalisation does not look at the data."""
        refuse_batch_norm(plan.network)
        statistics = None
        if plan.privacy:
            statistics = (torch.full((data.channels,), 0.5), torch.full((data.channels,), 0.25))
        source = Source.of(data, device, statistics)
        network = build_network(plan.network, data.channels, data.size, data.classes).to(device)
        return cls(source, network, plan, device)

    @property
    def batched(self) -> bool | None:
        return self.plan.batched

    def generator(self, step: int, *stream: int) -> torch.Generator:
        return seeded(self.plan.seed, 101, step, *stream)

    def fresh_network(self, step: int) -> Parameters:
        return fresh_parameters(self.network, seeded(self.plan.seed, 102, step), self.device)

    def draw_augmentation(self, generator: torch.Generator) -> Augmentation:
        return draw_augmentation(self.plan.augmentations or (), self.source.classes, generator)

    def labels_of(
        self, images: Float[Tensor, "classes per_class channels height width"]
    ) -> Int64[Tensor, "classes per_class"]:
        return torch.arange(images.shape[0], device=images.device)[:, None].expand(images.shape[:2])


def normalise(
    images: Float[Tensor, "n channels height width"],
    mean: Float[Tensor, " channels"],
    deviation: Float[Tensor, " channels"],
) -> Float[Tensor, "n channels height width"]:
    """[0, 1] pixels to zero mean and unit deviation per channel."""
    mean, deviation = mean.to(images.device), deviation.to(images.device)
    return (images - mean[:, None, None]) / deviation[:, None, None]


def denormalise(
    images: Float[Tensor, "n channels height width"],
    mean: Float[Tensor, " channels"],
    deviation: Float[Tensor, " channels"],
) -> Float[Tensor, "n channels height width"]:
    """The inverse of `normalise`; pixels may lie outside [0, 1]."""
    mean, deviation = mean.to(images.device), deviation.to(images.device)
    return images * deviation[:, None, None] + mean[:, None, None]
