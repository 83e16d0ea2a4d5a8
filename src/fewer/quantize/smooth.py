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


def all_scales(
    activation_peak: Float[Tensor, "dim"], weight_peak: Float[Tensor, "dim"], grid: int = 20
) -> list[Float[Tensor, "dim"]]:
    """lambda of every candidate, in the order of the search."""
    return [smoothing_scales(activation_peak, weight_peak, *pair) for pair in candidates(grid)]


def search(
    activation_peak: Float[Tensor, "dim"],
    weight_peak: Float[Tensor, "dim"],
    error: Callable[[Tensor, Tensor], Tensor],
    grid: int = 20,
) -> tuple[Float[Tensor, "dim"], list[Trial]]:
    """The scales with the least `error(scales, least so far)`, and every trial. Of equals the later wins.

    `error` may answer infinity as soon as it knows that it is beyond the least so far. Errors are tensors of
    one number that nobody looks at before the end, so that a GPU is never waited for in between.
    """
    dead = int(((activation_peak == 0) | (weight_peak == 0)).sum())
    if dead:
        logger.warning(
            "%d of %d channels are all zero; their smoothing scale is 1", dead, len(activation_peak)
        )
    proposed = all_scales(activation_peak, weight_peak, grid)
    least, errors = activation_peak.new_full((), torch.inf, dtype=torch.float32), []
    for scales in proposed:
        errors.append(error(scales, least))
        least = torch.fmin(least, errors[-1])
    found = torch.stack(errors).nan_to_num(nan=torch.inf, posinf=torch.inf).tolist()
    best = max(index for index, value in enumerate(found) if value <= min(found))
    trials = [Trial(*pair, value) for pair, value in zip(candidates(grid), found, strict=True)]
    return proposed[best], trials
