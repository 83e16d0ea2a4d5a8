"""InstanT's threshold (Li et al. 2023, arXiv 2310.18910): one for every image.

With the classifier's aligned probabilities p, a flattened posterior q, and the transition matrix T(x),
T_ij = P(pseudo-label j | true class i, x), the pseudo-label s = argmax p is accepted when

    p_s  >=  clip( kappa + tau(x), 0, clip ),      tau(x) = T_ss q_(2) + sum_{i != s} T_is q_i

where q_(2) is the runner-up: the threshold rises for ambiguous images and for likely errors.
kappa = cutoff * mean over the batch of max p, the relative base threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fewer.core.errors import ConfigError, DataError

Transition = Float[Tensor, "batch classes classes"] | Float[Tensor, "classes classes"]


class Decision(NamedTuple):
    """What the threshold says of each image of a batch."""

    threshold: Float[Tensor, " batch"]
    mask: Bool[Tensor, " batch"]
    """True: the pseudo-label is accepted."""
    tau: Float[Tensor, " batch"]
    """The part that depends on the image."""
    pseudo: Int64[Tensor, " batch"]
    """argmax of the probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceThreshold:
    """`InstanceThreshold(classes=10)(probabilities, transition)`: usable in any trainer."""

    classes: int
    cutoff: float = 0.9
    """Factor on the batch's mean confidence (kappa)."""
    temperature: float = 0.5
    """Of the softmax over *probabilities* that gives q when posterior is "flattened"."""
    clip: float = 0.99
    posterior: Literal["flattened", "plain", "views"] = "flattened"
    """`flattened`: q = softmax(p / temperature), as the authors' code; `plain`: q = p, as the theorem;
    `views` (ours): q is what the caller estimated from other views, p where it gives nothing."""
    compare: Literal["posterior", "noisy"] = "posterior"
    """What is held against the threshold: p_s (the authors' code) or (p T)_s (the theorem)."""
    check: bool = True
    """Verify that all rows sum to 1 (costs a synchronisation on a GPU)."""

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ConfigError(f"classes is {self.classes}; a threshold needs at least 2")
        if not 0 < self.cutoff <= 1:
            raise ConfigError(f"cutoff is {self.cutoff}; allowed: above 0, at most 1")
        if not 0 < self.clip <= 1 or self.temperature <= 0:
            raise ConfigError("clip must be in (0, 1] and temperature above 0")

    @torch.no_grad()
    def __call__(
        self,
        probabilities: Float[Tensor, "batch classes"],
        transition: Transition,
        others: Float[Tensor, "batch classes"] | None = None,
    ) -> Decision:
        """`others`: aligned probabilities from other views (`posterior="views"`). Raises `DataError` naming
        the first row that is no distribution."""
        if probabilities.shape[1] != self.classes or transition.shape[-2:] != (self.classes, self.classes):
            raise ConfigError(
                f"probabilities {tuple(probabilities.shape)} and transition {tuple(transition.shape)} "
                f"do not fit {self.classes} classes"
            )
        if self.check:
            require_distributions(probabilities, "probabilities")
            require_distributions(transition, "transition")
        confidence, pseudo = probabilities.max(1)
        tau = image_part(self.flatten(probabilities) if others is None else others, transition, pseudo)
        threshold = (base_threshold(probabilities, self.cutoff) + tau).clamp(0, self.clip)
        held = confidence
        if self.compare == "noisy":
            held = (probabilities * column(transition, pseudo)).sum(1)
        return Decision(threshold, held >= threshold, tau, pseudo)

    def flatten(self, probabilities: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """q, from which the image part is computed."""
        if self.posterior != "flattened":
            return probabilities
        return (probabilities / self.temperature).softmax(1)


def base_threshold(probabilities: Float[Tensor, "batch classes"], cutoff: float) -> Float[Tensor, ""]:
    """kappa = cutoff * mean_x max_k p_k(x): low while the classifier is unsure, as in AdaMatch."""
    return cutoff * probabilities.max(1).values.mean()


def image_part(
    posterior: Float[Tensor, "batch classes"], transition: Transition, pseudo: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """tau(x) = T_ss q_(2) + sum_{i != s} T_is q_i: ambiguity plus expected error mass."""
    into = column(transition, pseudo)
    own = into.gather(1, pseudo[:, None])[:, 0]
    # The runner-up is the best of the other classes: where the posterior is of another view than the
    # pseudo-label, that may be the best of all.
    runner_up = posterior.scatter(1, pseudo[:, None], -1.0).max(1).values
    return own * runner_up + (into * posterior).sum(1) - own * posterior.gather(1, pseudo[:, None])[:, 0]


def column(transition: Transition, pseudo: Int64[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
    """Column s(x) of T(x) for each image: the chance that class i is taken for s."""
    if transition.ndim == 2:
        return transition.T.index_select(0, pseudo)
    index = pseudo[:, None, None].expand(-1, transition.shape[1], 1)
    return transition.gather(2, index)[:, :, 0]


def require_distributions(values: Float[Tensor, "*shape"], what: str) -> None:
    """Every last axis must be non-negative and sum to 1 (within 1e-4); `DataError` gives the index."""
    bad = ((values.sum(-1) - 1).abs() > 1e-4) | (values < -1e-6).any(-1) | values.isnan().any(-1)
    if bool(bad.any()):
        place = torch.nonzero(bad)[0].tolist()
        index = place[0] if len(place) == 1 else tuple(place)
        raise DataError(
            f"{what}: row {index} is no distribution (sum {float(values[tuple(place)].sum()):.6g})"
        )
