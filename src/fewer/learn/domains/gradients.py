"""How strongly each weight reacts to the domain: averages of dense gradients over the last n batches.

"Dense" means for every entry, kept and masked alike, with the masked values in the forward pass; the gradient
is never multiplied by the mask here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.learn.domains.plan import FirstMask, Score

EPSILON = 0.05
"""Added to the layer-normalised domain gradients, so that no weight is kept for a zero alone."""


class GradientAverage:
    """Sums of gradients and, where asked for, of their squares for the named weights, by source.

    Kinds: `task` and `domain`, and `env<e>` for the task gradient on domain e alone. With `fixed` sums are
    set to zero where they lie instead of being dropped, for steps that were recorded.
    """

    def __init__(self, *, fixed: bool = False) -> None:
        self.fixed = fixed
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    @torch.no_grad()
    def add(
        self, kind: str, names: Sequence[str], gradients: Sequence[Tensor], *, squares: bool = False
    ) -> None:
        """One batch's gradients."""
        for name, gradient in zip(names, gradients, strict=True):
            key = f"{kind}/{name}"
            if key in self.sums:
                self.sums[key].add_(gradient)
            else:
                self.sums[key] = gradient.detach().clone()
            if squares and key in self.squares:
                self.squares[key].addcmul_(gradient, gradient)
            elif squares:
                self.squares[key] = gradient.detach().square()
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def mean(self, kind: str, name: str) -> Tensor:
        return self.sums[f"{kind}/{name}"] / self.counts[kind]

    def mean_square(self, kind: str, name: str) -> Tensor:
        return self.squares[f"{kind}/{name}"] / self.counts[kind]

    def forget(self) -> None:
        """As if nothing had been added."""
        self.counts = {}
        if not self.fixed:
            self.sums, self.squares = {}, {}
        for total in (*self.sums.values(), *self.squares.values()):
            total.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint; inverse: `restore`."""
        return {f"sum/{k}": v for k, v in self.sums.items()} | {
            f"square/{k}": v for k, v in self.squares.items()
        }

    def restore(self, tensors: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        self.sums = {k.removeprefix("sum/"): v for k, v in tensors.items() if k.startswith("sum/")}
        self.squares = {k.removeprefix("square/"): v for k, v in tensors.items() if k.startswith("square/")}
        self.counts = dict(counts)


def variance_score(average: GradientAverage, name: str, score: Score, envs: int) -> Float[Tensor, " ..."]:
    """|G| of one weight tensor, the larger the more variant (for `task`: the more useful).

    `mixed` is what the released code computes: all task gradients of the window plus one domain gradient,
    over the number of batches. `covariance` (after DSP-Reg, arXiv 2601.19394) is the deviation between the
    domains' mean task gradients.
    """
    match score:
        case "domain" | "task":
            return average.mean(score, name).abs()
        case "mixed":
            total = average.sums[f"task/{name}"] + average.sums[f"domain/{name}"]
            return (total / average.counts["task"]).abs()
        case "covariance":
            return torch.stack([average.mean(f"env{e}", name) for e in range(envs)]).std(0, correction=0)


def first_score(
    average: GradientAverage, name: str, weight: Tensor, first: FirstMask, generator: torch.Generator
) -> Float[Tensor, " ..."]:
    """Score by which the first mask keeps weights, the larger the better (spec 2.4)."""
    match first:
        case "weight":
            return weight.detach().abs()
        case "random":
            return torch.rand(weight.shape, generator=generator).to(weight.device)
        case "sensitivity":
            return average.mean("task", name).abs()
        case "fisher":
            return average.mean_square("task", name)
        case "domain-fisher":
            task, domain = average.mean_square("task", name), average.mean_square("domain", name)
            return _by_layer_mean(task) / (_by_layer_mean(domain) + EPSILON)


def _by_layer_mean(values: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    return values / values.mean().clamp(min=1e-30)
