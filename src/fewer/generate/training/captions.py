"""Which caption of a picture to train on: weights from scores (arXiv 2410.10629, section 4.2).

A picture may have several captions, each scored by how well it fits (a CLIP score, about 20 to 35).
Captions below the threshold are left out unless none reaches it. The published formula is a softmax of
score/tau; the published code takes score**(1/tau) with tau 0.1. These differ greatly: for scores 26, 28, 30
the code gives 0.14, 0.29, 0.57 and a softmax at tau 0.1 gives 0, 0, 1. Both are here.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64

from fewer.core.errors import ConfigError

WeightMode = Literal["power", "softmax"]
THRESHOLD = 25.0


def caption_weights(
    scores: Sequence[float],
    mode: WeightMode = "power",
    tau: float | None = None,
    threshold: float = THRESHOLD,
) -> Float64[np.ndarray, " captions"]:
    """Probabilities of the captions of one picture.

    `tau` defaults to 0.1 for "power" (the tenth power) and to 1 score unit for "softmax".
    Raises `ConfigError` without captions, for scores that are not finite and positive, or a tau of 0 or less.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ConfigError("a picture has no captions; give at least one sentence for each picture")
    if not np.isfinite(values).all() or (values <= 0).any():
        raise ConfigError(f"caption scores are {values.tolist()[:5]}; they must be positive numbers")
    tau = tau if tau is not None else {"power": 0.1, "softmax": 1.0}.get(mode, -1.0)
    if mode not in ("power", "softmax") or tau <= 0:
        raise ConfigError(f"caption mode {mode!r} with tau {tau}; allowed: power, softmax with tau above 0")
    passing = values >= threshold
    if not passing.any():
        passing = values == values.max()
    # Both forms are invariant to a common factor (power) or term (softmax): divide it out against overflow.
    logits = np.log(values) / tau if mode == "power" else values / tau
    weights = np.where(passing, np.exp(logits - logits[passing].max()), 0.0)
    return weights / weights.sum()


def draw_captions(
    weights: Float64[np.ndarray, " captions"], generator: torch.Generator, count: int = 1
) -> list[int]:
    """Indices of `count` captions, drawn independently with these probabilities."""
    drawn = torch.rand(count, generator=generator, dtype=torch.float64).numpy()
    places = np.searchsorted(np.cumsum(weights), drawn, side="right")
    return np.minimum(places, len(weights) - 1).tolist()
