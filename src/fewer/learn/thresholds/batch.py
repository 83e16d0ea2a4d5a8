"""What a method sees of one training step, and what it answers. A method is a function

    method(network, batch, state, plan) -> Outcome

that makes its own forward pass, so that it reads like its paper. `state` holds running means in buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Batch:
    """Views of B labelled and U unlabelled images, normalised and on the device."""

    labelled: Float[Tensor, "labelled channels height width"]
    """Weakly augmented."""
    labels: Int64[Tensor, " labelled"]
    weak: Float[Tensor, "unlabelled channels height width"]
    strong: Float[Tensor, "unlabelled channels height width"]
    again: Float[Tensor, "others channels height width"] | None
    """Further weak views, for methods that ask for them, one whole round after the other."""
    rows: Int64[Tensor, " unlabelled"]
    """Row numbers of the unlabelled images."""
    progress: float
    """Share of the run that is done, 0 .. 1."""
    generator: torch.Generator
    """On the CPU."""


class Outcome(NamedTuple):
    """The loss of a step, and what the method thought of each unlabelled image."""

    loss: Float[Tensor, ""]
    supervised: Float[Tensor, ""]
    unsupervised: Float[Tensor, ""]
    weights: Float[Tensor, " unlabelled"]
    """0: refused, 1: accepted; between for soft methods."""
    threshold: Float[Tensor, " unlabelled"]
    confidence: Float[Tensor, " unlabelled"]
    pseudo: Int64[Tensor, " unlabelled"]


def forward_together(network: nn.Module, *views: Tensor) -> tuple[Tensor, ...]:
    """Logits of each view from one forward pass, so that batch norm sees all of them."""
    return network(torch.cat(views)).float().split([len(view) for view in views])


def weighted_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    targets: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"],
    weights: Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Mean over the whole batch: refused images count as zero."""
    return (F.cross_entropy(logits, targets, reduction="none") * weights).mean()


def outcome(
    supervised: Tensor,
    unsupervised: Tensor,
    unlabelled_weight: float,
    weights: Tensor,
    threshold: Tensor | float,
    confidence: Tensor,
    pseudo: Tensor,
) -> Outcome:
    """Joins the parts; a single threshold is spread over the batch."""
    spread = torch.as_tensor(threshold, dtype=torch.float32, device=weights.device).expand_as(weights)
    total = supervised + unlabelled_weight * unsupervised
    return Outcome(
        total, supervised, unsupervised, weights.detach().float(), spread, confidence.float(), pseudo
    )


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm normalises by the batch but does not remember it."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
