"""Differentially private matching: what the loss sees of real pictures is clipped, summed and noised.

Each step draws every protected unit (a picture, or a patient with all pictures) with chance q (Poisson). The
unit's contribution to all class sums together is scaled to length at most C, and Gaussian noise of deviation
sigma·C is added once to the sums: the subsampled Gaussian mechanism of DP-SGD, here on embeddings (DM) or on
per-picture gradients (DC; "Private Set Generation", Chen et al. 2022). The pictures see real data through
these sums alone. Taken as public, and said so in the file: class counts, class names, picture size.
Who is drawn and the noise come from the operating system's randomness: whoever knew the seed, which the file
names, could take the noise away again. So a private run is not repeatable. The accounting is opacus'.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import grad, vmap

from fewer.core.errors import ConfigError
from fewer.learn.distillation.gradient import gradient_distance
from fewer.learn.distillation.plan import PrivacyPlan
from fewer.learn.distillation.stacked import (
    Parameters,
    class_gradients,
    classification_loss,
    embedding,
    logits,
)
from fewer.learn.distillation.task import Synthetic, Task


@dataclass(frozen=True, slots=True)
class PrivacyReport:
    """What a finished run guarantees."""

    epsilon: float
    delta: float
    noise_multiplier: float
    steps: int
    sample_rate: float
    clip: float
    accountant: str
    unit: str
    """`image`, or `patient` where patient numbers were given."""
    public: str = "class counts, class names, picture size; normalisation by constants"


def noise_for(plan: PrivacyPlan, steps: int) -> float:
    """The noise multiplier that the plan names, or the smallest that keeps its epsilon over `steps`."""
    if (plan.epsilon is None) == (plan.noise_multiplier is None):
        raise ConfigError(
            "differential privacy needs either epsilon or noise_multiplier, not both and not neither"
        )
    if plan.noise_multiplier is not None:
        return plan.noise_multiplier
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        # A best order at the edge of the list means that the bound could be tighter, not that it is wrong.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return get_noise_multiplier(
                target_epsilon=plan.epsilon,
                target_delta=plan.delta,
                sample_rate=plan.sample_rate,
                steps=steps,
                accountant=plan.accountant,
                **_orders(plan),
            )
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"epsilon {plan.epsilon:g} with delta {plan.delta:g} cannot be kept over {steps} steps at a "
                f"sample rate of {plan.sample_rate:g}, whatever the noise; try a larger epsilon or delta, or "
                "fewer --iterations"
            ) from error


def spent(plan: PrivacyPlan, noise_multiplier: float, steps: int, unit: str) -> PrivacyReport:
    """The epsilon of `steps` steps, by opacus' accountant."""
    from opacus.accountants import create_accountant

    accountant = create_accountant(mechanism=plan.accountant)
    accountant.history = [(noise_multiplier, plan.sample_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        epsilon = float(accountant.get_epsilon(delta=plan.delta, **_orders(plan)))
    return PrivacyReport(
        epsilon, plan.delta, noise_multiplier, steps, plan.sample_rate, plan.clip, plan.accountant, unit
    )


def _orders(plan: PrivacyPlan) -> dict[str, list[float]]:
    """More Renyi orders than opacus' default 1.1 .. 63: small epsilons need large ones."""
    if plan.accountant != "rdp":
        return {}
    return {
        "alphas": [1.0 + x / 10 for x in range(1, 100)]
        + [float(x) for x in (*range(12, 64), 80, 128, 256, 512)]
    }


def private_class_sums(
    vectors: Float[Tensor, "n dim"],
    labels: Int64[Tensor, " n"],
    units: Int64[Tensor, " n"],
    classes: int,
    clip: float,
) -> Float[Tensor, "classes dim"]:
    """Class sums of the vectors, every unit's part of them (over all classes together) clipped to length
    `clip`.
    """
    _, unit = torch.unique(units, return_inverse=True)
    count = int(unit.max()) + 1 if len(unit) else 0
    parts = torch.zeros(count * classes, vectors.shape[1], device=vectors.device)
    parts.index_add_(0, unit * classes + labels, vectors)
    parts = parts.reshape(count, classes, vectors.shape[1])
    lengths = parts.flatten(1).norm(dim=1).clamp(min=1e-12)
    return (parts * (clip / lengths).clamp(max=1.0)[:, None, None]).sum(0)


@dataclass(frozen=True, slots=True)
class PrivateMatching:
    """The private form of DM (`dm`) and of DC and DSA (`dc`, `dsa`); a matching loss like the others."""

    noise_multiplier: float
    units: Int64[Tensor, " n"]
    """Number of the protected unit of every row of the task's source."""
    chance: np.random.Generator = field(default_factory=np.random.default_rng)
    """Whom it draws and the noise; its state must stay unknown to those who get the set."""

    def __call__(self, task: Task, synthetic: Synthetic, step: int) -> Iterator[Tensor]:
        """One loss a step: each step is one release of the mechanism."""
        if task.plan.method == "dm":
            yield self._distribution(task, synthetic, step)
        else:
            yield self._gradient(task, synthetic, step)

    def _distribution(self, task: Task, synthetic: Synthetic, step: int) -> Tensor:
        parameters = task.fresh_network(step)
        rows = self._draw(task)
        with torch.no_grad():
            vectors = embedding(task.network, parameters, task.source.images[rows])
        target = self._noised_means(task, vectors, rows)
        pictures = synthetic.by_class()
        features = embedding(task.network, parameters, pictures.flatten(0, 1)).unflatten(
            0, pictures.shape[:2]
        )
        # Clipping shortens every vector to at most `clip`; ours are shortened alike, so that the two can
        # meet.
        lengths = features.norm(dim=2, keepdim=True).clamp(min=1e-12)
        features = features * (_clip(task) / lengths).clamp(max=1.0)
        return (features.mean(1) - target).square().sum()

    def _gradient(self, task: Task, synthetic: Synthetic, step: int) -> Tensor:
        parameters = task.fresh_network(step)
        rows = self._draw(task)

        def one(image: Tensor, label: Tensor) -> Parameters:
            def loss(values: Parameters) -> Tensor:
                return classification_loss(logits(task.network, values, image[None]), label[None])

            return grad(loss)(parameters)

        if len(rows):
            each = vmap(one)(task.source.images[rows], task.source.labels[rows])
        else:  # nobody was drawn: the noise alone is released
            each = {name: value.new_zeros(0, *value.shape) for name, value in parameters.items()}
        vectors = torch.cat([value.flatten(1) for value in each.values()], 1).detach()
        flat = self._noised_means(task, vectors, rows)
        target, position = {}, 0
        for name, value in each.items():
            size = parameters[name].numel()
            target[name] = flat[:, position : position + size].reshape(task.source.classes, *value.shape[1:])
            position += size
        pictures = synthetic.by_class()
        ours = class_gradients(
            task.network, parameters, pictures, task.labels_of(pictures), batched=task.batched
        )
        return gradient_distance(ours, target, task.plan.distance, leading=1)

    def _draw(self, task: Task) -> Int64[Tensor, " m"]:
        """Poisson sampling of units; the rows of those drawn."""
        assert task.plan.privacy is not None
        chances = torch.from_numpy(self.chance.random(int(self.units.max()) + 1))
        taken = chances < task.plan.privacy.sample_rate
        return torch.nonzero(taken[self.units]).flatten().to(task.device)

    def _noised_means(self, task: Task, vectors: Tensor, rows: Tensor) -> Float[Tensor, "classes dim"]:
        assert task.plan.privacy is not None
        classes, clip = task.source.classes, _clip(task)
        units = self.units.to(rows.device)[rows]
        sums = private_class_sums(vectors, task.source.labels[rows], units, classes, clip)
        noise = torch.from_numpy(self.chance.standard_normal(tuple(sums.shape))).to(sums)
        counts = torch.tensor([task.source.count(label) for label in range(classes)], device=sums.device)
        expected = task.plan.privacy.sample_rate * counts  # public, so that dividing by it costs nothing
        return (sums + self.noise_multiplier * clip * noise) / expected[:, None]


def _clip(task: Task) -> float:
    assert task.plan.privacy is not None
    return task.plan.privacy.clip
