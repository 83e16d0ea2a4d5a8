"""The methods by name: a function of the batch, its state, and which views it looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fewer.learn.thresholds import adaptive, fixed, instant, mixmatch
from fewer.learn.thresholds.batch import Outcome


@dataclass(frozen=True, slots=True)
class Method:
    """`step(network, batch, state, plan)`; `state(plan, channels, classes, unlabelled)`."""

    step: Callable[..., Outcome]
    state: Callable[..., nn.Module] = fixed.no_state
    strong: bool = True
    again: int = 0
    """Further weak views."""
    unlabelled: bool = True


METHODS: dict[str, Method] = {
    "labels-only": Method(fixed.labels_only, strong=False, unlabelled=False),
    "pseudo-label": Method(fixed.pseudo_label, strong=False),
    "mixmatch": Method(mixmatch.mixmatch, strong=False, again=1),
    "uda": Method(fixed.uda),
    "fixmatch": Method(fixed.fixmatch),
    "flexmatch": Method(adaptive.flexmatch, adaptive.FlexMatchState),
    "freematch": Method(adaptive.freematch, adaptive.FreeMatchState),
    "softmatch": Method(adaptive.softmatch, adaptive.SoftMatchState),
    "adamatch": Method(adaptive.adamatch, adaptive.AdaMatchState),
    "instant": Method(instant.instant, instant.InstantState),
}
