"""The guarantee behind the threshold, and a Monte-Carlo check of it.

Let eta be the true posterior, g = eta T the posterior of the pseudo-label, and let the estimates keep
|eta^_i - eta_i| <= error and |g^_s - g_s| <= error, s = argmax eta^, c_s = sum_i T_is. Accept when

    g^_s  >=  T_ss eta^_(2) + sum_{i != s} T_is eta^_i + kappa.

Because g_s = T_ss eta_s + sum_{i != s} T_is eta_i, every accepted image has

    eta_s - max_{i != s} eta_i  >=  (kappa - error (1 + c_s)) / T_ss.                              (*)

(i)  With kappa >= error (1 + c_s) the accepted pseudo-label is the Bayes label, always.
(ii) With kappa = 0 and Tsybakov's condition P(eta_(1) - eta_(2) <= t) <= C t^lambda, it is not the Bayes
     label with probability at most C (error (1 + c_s) / T_ss)^lambda.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import ConfigError
from fewer.learn.thresholds.instance import Transition, column, image_part


def certificate(
    probabilities: Float[Tensor, "batch classes"], transition: Transition, pseudo: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Estimated margin of the pseudo-label over its runner-up: (g^_s - tau) / T_ss, with q = probabilities.

    With exact T and error 0, a positive value means that the pseudo-label is the Bayes label.
    """
    into = column(transition, pseudo)
    own = into.gather(1, pseudo[:, None])[:, 0]
    noisy = (probabilities * into).sum(1)
    return (noisy - image_part(probabilities, transition, pseudo)) / own.clamp(min=1e-6)


def safe_base(column_sum: Float[Tensor, " batch"], error: float) -> Float[Tensor, " batch"]:
    """The kappa from which on every accepted label is the Bayes label: error (1 + c_s)."""
    return error * (1 + column_sum)


def failure_bound(
    column_sum: Float[Tensor, " batch"],
    own: Float[Tensor, " batch"],
    error: float,
    constant: float,
    exponent: float = 1.0,
) -> Float[Tensor, " batch"]:
    """C (error (1 + c_s) / T_ss)^lambda, at most 1: the chance that an accepted label is not Bayes'."""
    return (constant * (error * (1 + column_sum) / own) ** exponent).clamp(max=1.0)


@dataclass(frozen=True, slots=True)
class GuaranteeCheck:
    """Counts of a Monte-Carlo run."""

    draws: int
    accepted_safe: int
    """Accepted with kappa = error (1 + c_s)."""
    wrong_safe: int
    """Of these, not the Bayes label: (i) says none."""
    accepted_plain: int
    """Accepted with kappa = 0."""
    failure_rate: float
    """Share of all draws that are accepted with kappa = 0 and wrong."""
    failure_rate_accepted: float
    """The same among the accepted."""
    bound: float
    """(ii), averaged over the draws."""
    margin_violations: int
    """Accepted images that break (*): none."""


def monte_carlo_check(
    draws: int = 100_000,
    classes: int = 5,
    error: float = 0.02,
    *,
    least_own: float = 0.6,
    adversarial: bool = False,
    seed: int = 0,
) -> GuaranteeCheck:
    """Draws posteriors, transition matrices with T_ss >= `least_own`, and estimates off by at most `error`.

    Posteriors are uniform on the simplex, for which the margin law is known: the largest minus the second
    largest of K uniform spacings is Beta(1, K - 1), so C = K - 1 and lambda = 1. `adversarial` puts every
    estimate at the end of its interval that hurts most.
    """
    if classes < 2 or draws < 1 or not 0 <= error < 1 or not 0 < least_own < 1:
        raise ConfigError("needed: classes >= 2, draws >= 1, error in [0, 1), least_own in (0, 1)")
    generator = seeded(seed, 31)
    truth = _simplex(draws, classes, generator)
    transition = _transitions(draws, classes, least_own, generator)
    guess = truth + error * _errors(truth, adversarial, generator)
    pseudo, bayes = guess.argmax(1), truth.argmax(1)
    into = column(transition, pseudo)
    own, total = into.gather(1, pseudo[:, None])[:, 0], into.sum(1)
    off = torch.ones(draws) if adversarial else 2 * torch.rand(draws, generator=generator) - 1
    noisy = (truth * into).sum(1) + error * off
    tau = image_part(guess, transition, pseudo)
    safe, plain = noisy >= tau + safe_base(total, error), noisy >= tau
    wrong = pseudo != bayes
    others = truth.scatter(1, pseudo[:, None], -1.0).max(1).values
    margin = truth.gather(1, pseudo[:, None])[:, 0] - others
    # The bound must not look at s, which depends on the draw of the posterior: the worst column is taken.
    worst = ((1 + transition.sum(1)) / transition.diagonal(dim1=1, dim2=2)).max(1).values * error
    return GuaranteeCheck(
        draws=draws,
        accepted_safe=int(safe.sum()),
        wrong_safe=int((safe & wrong).sum()),
        accepted_plain=int(plain.sum()),
        failure_rate=float((plain & wrong).double().mean()),
        failure_rate_accepted=float((plain & wrong).sum() / plain.sum().clamp(min=1)),
        bound=float(((classes - 1) * worst).clamp(max=1).mean()),
        margin_violations=int((plain & (margin < -error * (1 + total) / own - 1e-9)).sum()),
    )


def _simplex(draws: int, classes: int, generator: torch.Generator) -> Float[Tensor, "draws classes"]:
    raw = -torch.rand(draws, classes, generator=generator, dtype=torch.float64).clamp(min=1e-300).log()
    return raw / raw.sum(1, keepdim=True)


def _transitions(
    draws: int, classes: int, least_own: float, generator: torch.Generator
) -> Float[Tensor, "draws classes classes"]:
    own = least_own + (1 - least_own) * torch.rand(draws, classes, generator=generator, dtype=torch.float64)
    rest = torch.rand(draws, classes, classes, generator=generator, dtype=torch.float64)
    rest.diagonal(dim1=1, dim2=2).zero_()
    rest = rest / rest.sum(2, keepdim=True) * (1 - own)[..., None]
    return rest + torch.diag_embed(own)


def _errors(
    truth: Float[Tensor, "draws classes"], adversarial: bool, generator: torch.Generator
) -> Float[Tensor, "draws classes"]:
    if not adversarial:
        return 2 * torch.rand(truth.shape, generator=generator, dtype=torch.float64) - 1
    # The runner-up is raised and all others are lowered: the swap that a wrong acceptance needs.
    runner_up = truth.topk(2, dim=1).indices[:, 1:]
    return torch.full_like(truth, -1.0).scatter(1, runner_up, 1.0)
