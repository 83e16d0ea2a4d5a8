"""Moving outliers from activations into the weight: per-channel scales found on a grid.

lambda_i = a_i^alpha / w_i^beta, where a_i and w_i are the largest magnitudes of input channel i in the
activations and in the weights (SVDQuant section 4.1; SmoothQuant). Layers that read the same input share
lambda.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate of the search and what it cost."""

    alpha: float
    beta: float
    error: float


def candidates(grid: int = 20) -> list[tuple[float, float]]:
    """(0, 0), then (i/n, 0) and (i/n, 1 - i/n) for i = 1 .. n - 1: 39 pairs for n = 20.

    (0, 0) is no smoothing at all; it must stay in the list, because with a low-rank branch smoothing can
    hurt.
    """
    pairs = [(0.0, 0.0)]
    for step in range(1, grid):
        pairs += [(step / grid, 0.0), (step / grid, 1 - step / grid)]
    return pairs


def smoothing_scales(
    activation_peak: Float[Tensor, "dim"], weight_peak: Float[Tensor, "dim"], alpha: float, beta: float
) -> Float[Tensor, "dim"]:
    """lambda for one candidate; entries that come out zero or not finite become 1."""
    scales = activation_peak.float() ** alpha / weight_peak.float() ** beta
    return torch.where(torch.isfinite(scales) & (scales > 0), scales, torch.ones_like(scales))


def search(
    activation_peak: Float[Tensor, "dim"],
    weight_peak: Float[Tensor, "dim"],
    error: Callable[[Tensor, float], float],
    grid: int = 20,
) -> tuple[Float[Tensor, "dim"], list[Trial]]:
    """The scales with the least `error(scales, least so far)`, and every trial. Of equals the later wins.

    `error` may answer infinity as soon as it knows that it is beyond the least so far.
    """
    dead = int(((activation_peak == 0) | (weight_peak == 0)).sum())
    if dead:
        logger.warning(
            "%d of %d channels are all zero; their smoothing scale is 1", dead, len(activation_peak)
        )
    best, trials = torch.ones_like(activation_peak, dtype=torch.float32), []
    least = float("inf")
    for alpha, beta in candidates(grid):
        scales = smoothing_scales(activation_peak, weight_peak, alpha, beta)
        trials.append(Trial(alpha, beta, error(scales, least)))
        if trials[-1].error <= least:
            best, least = scales, trials[-1].error
    return best, trials
