"""The objectives that a mask can be wrapped around: ERM, IRM, V-REx, SAM, GroupDRO, CORAL, MMD, Mixup, Fish,
Fishr, ANDMask. Constants are DomainBed's; each takes one batch that holds the same number of pictures per
domain.

`base_gradients` puts the gradient into `.grad` and says what the loss was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fewer.learn.domains.plan import BaseName, InvariantPlan

PENALTIES: dict[BaseName, float] = {"irm": 100.0, "vrex": 10.0, "coral": 1.0, "mmd": 1.0, "fishr": 1000.0}
_MASKED_PENALTIES: dict[BaseName, float] = {**PENALTIES, "irm": 1.0}
_LATE: dict[BaseName, int] = {"irm": 500, "vrex": 500, "fishr": 1500}
_BEFORE: dict[BaseName, float] = {"irm": 1.0, "vrex": 1.0, "fishr": 0.0}
PUBLISHED_STEPS = 5001
GROUP_RATE = 0.01  # GroupDRO's eta
MIXUP_ALPHA = 0.2
FISH_RATE = 0.05  # of the plain steps from domain to domain
MMD_GAMMAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True, slots=True)
class DomainBatch:
    """Pictures of all source domains, one domain after the other."""

    images: Float[Tensor, " batch *shape"]
    labels: Int64[Tensor, " batch"]
    sizes: tuple[int, ...]
    """How many rows each domain has."""

    @property
    def domains(self) -> Int64[Tensor, " batch"]:
        """The source domain's number of each row."""
        # Filled part by part: counts on the host would make a GPU wait.
        parts = [torch.full((size,), env, device=self.labels.device) for env, size in enumerate(self.sizes)]
        return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class BaseResult:
    """What a base left behind besides `.grad`."""

    loss: Tensor
    features: Tensor | None
    """With its graph, for the domain gradients; None where the batch was mixed across domains."""


class BaseState(nn.Module):
    """What an objective remembers from step to step."""

    def __init__(self, envs: int) -> None:
        super().__init__()
        self.group_weights: Tensor
        self.register_buffer("group_weights", torch.full((envs,), 1.0 / envs))


def penalty_at(plan: InvariantPlan, step: int) -> float:
    """The weight of the base's penalty at a step; plain IRM, V-REx and Fishr start late, with 1 or (Fishr) 0
    before."""
    masked = plan.method != "none"
    weight = plan.penalty
    if weight is None:
        weight = (_MASKED_PENALTIES if masked else PENALTIES).get(plan.base, 1.0)
    return weight if step >= penalty_start(plan) else _BEFORE[plan.base]


def penalty_start(plan: InvariantPlan) -> int:
    """The step at which the full penalty sets in (and the optimizer is started afresh, if it is not 0).

    DomainBed's steps (500, Fishr 1500) are of runs of 5001; in a shorter run the same share of it.
    """
    if plan.base not in _LATE:
        return 0
    if plan.penalty_from is not None:
        return plan.penalty_from
    late = _LATE[plan.base]
    return min(late, round(late / PUBLISHED_STEPS * plan.steps)) if plan.method == "none" else 0


def base_gradients(
    network: nn.Module,
    batch: DomainBatch,
    plan: InvariantPlan,
    state: BaseState,
    masks: Mapping[str, Tensor],
    step: int,
    generator: torch.Generator,
    *,
    keep_graph: bool = False,
) -> BaseResult:
    """Sets `.grad` of every parameter to the gradient of the plan's base objective on `batch`.

    `keep_graph` keeps the graph of the features, so that domain gradients need no second forward pass.
    """
    if plan.base == "mixup":
        loss = _mixup(network, batch, generator)
        loss.backward()
        return BaseResult(loss.detach(), None)
    if plan.base == "fish":
        return BaseResult(_fish(network, batch, masks, generator), None)
    features = network.features(batch.images)  # pyright: ignore[reportCallIssue]
    logits = network.classifier(features)  # pyright: ignore[reportCallIssue]
    if plan.base == "and-mask":
        return _and_mask(network, batch, features, logits)
    loss = _objective(plan, batch, features, logits, state, penalty_at(plan, step))
    loss.backward(retain_graph=keep_graph)
    if plan.base == "sam" and (plan.method == "none" or masks):
        _sharpness(network, batch, plan.radius, masks)
        # The climb and the way back have touched the weights, so the graph of the features is spent.
        features = None if keep_graph else features
    return BaseResult(loss.detach(), features)


def domain_losses(logits: Float[Tensor, "batch classes"], batch: DomainBatch) -> Float[Tensor, " envs"]:
    """Mean cross-entropy of each domain."""
    losses = F.cross_entropy(logits, batch.labels, reduction="none")
    return torch.stack([part.mean() for part in losses.split(batch.sizes)])


def _objective(
    plan: InvariantPlan, batch: DomainBatch, features: Tensor, logits: Tensor, state: BaseState, weight: float
) -> Tensor:
    match plan.base:
        case "irm":
            parts = zip(logits.split(batch.sizes), batch.labels.split(batch.sizes), strict=True)
            penalties = torch.stack([irm_penalty(part, labels) for part, labels in parts])
            return domain_losses(logits, batch).mean() + weight * penalties.mean()
        case "vrex":
            losses = domain_losses(logits, batch)
            return losses.mean() + weight * (losses - losses.mean()).square().mean()
        case "group-dro":
            losses = domain_losses(logits, batch)
            group = state.group_weights.mul_((GROUP_RATE * losses.detach()).exp())
            return (losses * group.div_(group.sum())).sum()
        case "coral" | "mmd":
            distance = coral_distance if plan.base == "coral" else mmd_distance
            return domain_losses(logits, batch).mean() + weight * _over_pairs(
                distance, features.split(batch.sizes)
            )
        case "fishr":
            return domain_losses(logits, batch).mean() + weight * fishr_penalty(features, logits, batch)
        case _:
            return F.cross_entropy(logits, batch.labels)


def irm_penalty(logits: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Product of the gradients w.r.t. a scale of 1 on the even and on the odd rows: an unbiased estimate of
    the squared gradient (IRM, arXiv 1907.02893, section 3.1 as DomainBed has it)."""
    scale = torch.ones((), device=logits.device, requires_grad=True)
    halves = [F.cross_entropy(logits[k::2] * scale, labels[k::2]) for k in (0, 1)]
    even, odd = (torch.autograd.grad(half, scale, create_graph=True)[0] for half in halves)
    return even * odd


def _over_pairs(distance: Callable[[Tensor, Tensor], Tensor], parts: tuple[Tensor, ...]) -> Float[Tensor, ""]:
    pairs = [(a, b) for i, a in enumerate(parts) for b in parts[i + 1 :]]
    return torch.stack([distance(a, b) for a, b in pairs]).mean()


def coral_distance(one: Float[Tensor, "n dim"], two: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
    """Squared difference of means and of covariances, each averaged over its entries."""
    mean = (one.mean(0) - two.mean(0)).square().mean()
    return mean + (_covariance(one) - _covariance(two)).square().mean()


def _covariance(features: Float[Tensor, "n dim"]) -> Float[Tensor, "dim dim"]:
    centred = features - features.mean(0, keepdim=True)
    return centred.T @ centred / max(1, len(features) - 1)


def mmd_distance(one: Float[Tensor, "n dim"], two: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
    """Maximum mean discrepancy with a sum of Gaussian kernels."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = (a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T).clamp(min=1e-30)
        return torch.stack([(-gamma * squared).exp() for gamma in MMD_GAMMAS]).sum(0).mean()

    return kernel(one, one) + kernel(two, two) - 2 * kernel(one, two)


def fishr_penalty(
    features: Float[Tensor, "batch dim"], logits: Float[Tensor, "batch classes"], batch: DomainBatch
) -> Float[Tensor, ""]:
    """Distance of each domain's gradient variance to their mean (Fishr, arXiv 2109.02934, equation 4).

    Per picture the gradient of the linear head is (p - onehot) x features; no running mean is kept.
    """
    error = logits.softmax(1) - F.one_hot(batch.labels, logits.shape[1])
    gradients = torch.cat([(error[:, :, None] * features[:, None, :]).flatten(1), error], 1)
    variances = torch.stack([part.var(0, correction=0) for part in gradients.split(batch.sizes)])
    return (variances - variances.mean(0)).square().mean()


def _mixup(network: nn.Module, batch: DomainBatch, generator: torch.Generator) -> Tensor:
    """Each domain mixed with the next one of a random order (DomainBed's inter-domain Mixup)."""
    draw = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    order = torch.randperm(len(batch.sizes), generator=generator).tolist()
    images, labels = batch.images.split(batch.sizes), batch.labels.split(batch.sizes)
    losses = []
    for i, j in pairwise([*order, order[0]]):
        share = float(draw.beta(MIXUP_ALPHA, MIXUP_ALPHA))
        count = min(len(labels[i]), len(labels[j]))
        logits = network(share * images[i][:count] + (1 - share) * images[j][:count])
        losses.append(
            share * F.cross_entropy(logits, labels[i][:count])
            + (1 - share) * F.cross_entropy(logits, labels[j][:count])
        )
    return torch.stack(losses).mean()


def _fish(
    network: nn.Module, batch: DomainBatch, masks: Mapping[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Fish (arXiv 2104.09937, algorithm 1): one plain step on each domain after the other, in random order;
    the way that was gone, over rate and number of domains, is the gradient. To first order in the rate it is
    the mean gradient less rate (envs - 1) / 4 times the slope of the mean inner product <g_i, g_j>.

    The paper adds the way to the weights; here, as in Reptile with an optimizer, it goes through Adam.
    """
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    images, labels = batch.images.split(batch.sizes), batch.labels.split(batch.sizes)
    losses = []
    for env in torch.randperm(len(batch.sizes), generator=generator).tolist():
        loss = F.cross_entropy(network(images[env]), labels[env])
        slopes = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
                parameter.sub_(FISH_RATE * (slope * masks[name] if name in masks else slope))
        losses.append(loss.detach())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.grad = (before[name] - parameter) / (FISH_RATE * len(losses))
            parameter.copy_(before[name])
    return torch.stack(losses).mean()


def _and_mask(network: nn.Module, batch: DomainBatch, features: Tensor, logits: Tensor) -> BaseResult:
    """Keeps the gradient where all domains agree in its sign (ANDMask with threshold 1, arXiv 2009.00329)."""
    losses = domain_losses(logits, batch)
    parameters = [p for p in network.parameters() if p.requires_grad]
    by_domain = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    for parameter, gradients in zip(parameters, zip(*by_domain, strict=True), strict=True):
        stack = torch.stack(gradients)
        agreed = (stack.sign().mean(0).abs() >= 1.0).to(stack)
        parameter.grad = stack.mean(0) * agreed / (agreed.mean() + 1e-10)
    return BaseResult(losses.mean().detach(), features)


def _sharpness(network: nn.Module, batch: DomainBatch, radius: float, masks: Mapping[str, Tensor]) -> None:
    """SAM's second pass: the gradient at w + radius * g / |g| (arXiv 2010.01412), climbing on the weights of
    the feature extractor only, and of those only on the kept ones."""
    climbing = {n: p for n, p in network.named_parameters() if n.split(".")[0] != "classifier"}
    gradients = {n: p.grad for n, p in climbing.items() if p.grad is not None}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm() + 1e-12
    before = {n: climbing[n].detach().clone() for n in gradients}
    with torch.no_grad():
        for name, gradient in gradients.items():
            ascent = gradient * (radius / norm)
            climbing[name].add_(ascent * masks[name] if name in masks else ascent)
    network.zero_grad(set_to_none=True)
    F.cross_entropy(network(batch.images), batch.labels).backward()
    with torch.no_grad():
        for name, weight in before.items():
            climbing[name].copy_(weight)
