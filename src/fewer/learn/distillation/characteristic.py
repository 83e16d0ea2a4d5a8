"""NCFM (Wang et al., CVPR 2025): match the characteristic functions of features, E exp(i <t, f>).

A characteristic function determines a distribution, so this matches more than means at the same linear cost.
The loss is mean_t sqrt( a (|F|-|G|)² + 2 b |F||G| (1 - cos(arg F - arg G)) ) with a = b = 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.learn.distillation.stacked import Parameters, embedding
from fewer.learn.distillation.task import Synthetic, Task
from fewer.learn.distillation.trajectory import random_snapshot

FREQUENCIES = 4096
AMPLITUDE_WEIGHT = 0.5
PHASE_WEIGHT = 0.5
CALIBRATION_WEIGHT = 1.0
CHUNK = 4096  # real pictures that go through the network together


def characteristic_function(
    features: Float[Tensor, "classes n features"], frequencies: Float[Tensor, "count features"]
) -> tuple[Float[Tensor, "classes count"], Float[Tensor, "classes count"]]:
    """Real and imaginary part of mean_n exp(i <t, f_n>)."""
    phases = features @ frequencies.T
    return phases.cos().mean(1), phases.sin().mean(1)


def characteristic_distance(
    ours: Float[Tensor, "classes few features"],
    real: Float[Tensor, "classes many features"],
    frequencies: Float[Tensor, "count features"],
) -> Float[Tensor, ""]:
    """The loss above, summed over classes; 0 for equal distributions."""
    a_real, a_imaginary = characteristic_function(ours, frequencies)
    b_real, b_imaginary = characteristic_function(real, frequencies)
    tiny = 1e-12  # the slope of sqrt at 0 is infinite
    a_size = (a_real.square() + a_imaginary.square() + tiny).sqrt()
    b_size = (b_real.square() + b_imaginary.square() + tiny).sqrt()
    # |F||G|(1 - cos of the phase difference) = |F||G| - Re(F conj G)
    phase = a_size * b_size - (a_real * b_real + a_imaginary * b_imaginary)
    inner = AMPLITUDE_WEIGHT * (a_size - b_size).square() + 2 * PHASE_WEIGHT * phase.clamp(min=0)
    return ((inner + tiny).sqrt() - tiny**0.5).mean(1).sum()


def characteristic_matching(task: Task, synthetic: Synthetic, step: int) -> Iterator[Tensor]:
    """One loss through a network trained on the real set, plus that network's cross-entropy (calibration)."""

    def matching(
        ours: Tensor, parameters: Parameters, real: Tensor, frequencies: Tensor, labels: Tensor
    ) -> Tensor:
        with torch.no_grad():
            parts = real.flatten(0, 1).split(CHUNK)
            target = torch.cat([embedding(task.network, parameters, part) for part in parts])
        features = embedding(task.network, parameters, ours.flatten(0, 1))
        # Our choice: frequencies in units of the features' spread, so that phases are of the order of 1.
        spread = target.std(0).square().sum().sqrt().clamp(min=1e-6)
        distance = characteristic_distance(
            features.unflatten(0, ours.shape[:2]),
            target.unflatten(0, real.shape[:2]),
            frequencies / spread,
        )
        outputs = nn.functional.linear(features, parameters["head.weight"], parameters["head.bias"])
        return distance + CALIBRATION_WEIGHT * nn.functional.cross_entropy(outputs, labels)

    generator = task.generator(step)
    parameters = random_snapshot(task, generator, oldest=True)
    change = task.draw_augmentation(generator)
    real = change.on_classes(task.source.sample(task.plan.real_batch, generator))
    ours = change.on_classes(synthetic.by_class())
    frequencies = _frequencies(task, generator)
    yield task.graphs.loss("characteristic", matching)(
        ours, parameters, real, frequencies, synthetic.labels()
    )


def _frequencies(task: Task, generator: torch.Generator) -> Float[Tensor, "count features"]:
    """Standard normal. On a GPU drawn there, from a seed drawn here: millions of numbers a step are more
    than a CPU makes in the time of the rest."""
    count, dim = min(FREQUENCIES, 16 * task.network.features), task.network.features
    if task.device.type == "cpu":
        return torch.randn(count, dim, generator=generator)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    own = torch.Generator(task.device).manual_seed(seed)
    return torch.randn(count, dim, generator=own, device=task.device)
