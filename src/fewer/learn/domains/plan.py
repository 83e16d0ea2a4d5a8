"""Every setting of an invariant-learning run; stored with its result, so that the run can be repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError
from fewer.learn.networks import NetworkName

BaseName = Literal[
    "erm", "irm", "vrex", "sam", "group-dro", "coral", "mmd", "mixup", "fish", "fishr", "and-mask"
]
MaskMethod = Literal["evil", "rigl", "random", "magnitude", "none"]
FirstMask = Literal["weight", "random", "sensitivity", "fisher", "domain-fisher"]
Drop = Literal["magnitude", "domain", "magnitude/domain"]
Score = Literal["domain", "mixed", "task", "covariance"]
Selection = Literal["training-domain", "leave-one-out", "oracle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvariantPlan:
    """Defaults suit small pictures; published DomainBed runs use 5001 steps, batch 32, rate 5e-5."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    base: BaseName = "erm"
    """The objective that is wrapped."""
    method: MaskMethod = "evil"
    """Who decides the mask: EVIL, RigL, a fixed random or magnitude mask, or none (dense)."""
    mode: Literal["faithful", "extended", "tmllab"] = "faithful"
    """faithful: EVIL as described; extended: domain gradients decide on both sides; tmllab: the released
    code with its departures (mixed gradients, frozen domain head, moments kept, norms masked)."""
    density: float = 0.6
    """Share of kept weights in each masked layer, in (0, 1]."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the kept weights exchanged at the first update."""
    delta: Annotated[int, Field(ge=1)] | None = None
    """Steps between updates; default 8 % of the run."""
    accumulation: Annotated[int, Field(ge=1)] | None = None
    """Batches whose gradients are averaged before an update; default 20, in short runs a sixth of `delta`:
    each of them costs a second backward pass."""
    warmup: Annotated[int, Field(ge=0)] | None = None
    """Dense steps before the first mask; default 20 % of the run."""
    exchange_end: Annotated[int, Field(ge=1)] | None = None
    """Masked step after which the mask is frozen (T_end); default 60 % of the run."""
    first_mask: FirstMask | None = None
    """How the first mask is chosen; default weight, extended: domain-fisher."""
    drop: Drop | None = None
    """What decides who leaves; default magnitude, extended: domain."""
    score: Score | None = None
    """Which gradients decide who enters; default domain."""
    domain_head: Literal["trained", "frozen"] | None = None
    """Whether the domain classifier learns (on detached features); default trained."""
    stem_dense: bool = True
    """The first layer is not masked."""
    penalty: Annotated[float, Field(ge=0)] | None = None
    """Weight of the base's penalty; default as the field's code."""
    penalty_from: Annotated[int, Field(ge=0)] | None = None
    """Step from which `penalty` counts (irm, vrex: 1 before; fishr: 0); default 0 with a mask, without one
    500 (fishr 1500) or, in runs shorter than 5001 steps, the same share of them."""
    radius: Annotated[float, Field(gt=0, le=10)] = 0.05
    """sam: length of the ascent step."""
    network: NetworkName = "group-cnn"
    """The classifier."""
    network_weights: str | None = None
    """Safetensors file with torchvision's tensor names, for the `-imagenet` networks; pictures are then
    normalised as ImageNet's, and batch norms keep the file's statistics."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Optimizer steps."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 24
    """Pictures of each source domain a step."""
    rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """Adam's learning rate."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Adam's weight decay."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Judge and keep a moving average of the weights instead of the last ones: the share that stays of it
    at every step (0.99, say). At a constant learning rate the last weights are noisy."""
    augment: bool = False
    """Shift pictures by up to an eighth and mirror them."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each domain that validates (DomainBed: 0.2)."""
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations; default a tenth of the run."""
    records: Literal["whole", "brief"] = "whole"
    """brief: an evaluation looks at the sources' validation pictures and at the domains held out, not at what
    the sources train on (on a CPU a whole one takes as long as 60 small steps)."""
    selection: Selection = "training-domain"
    """Rule that picks the checkpoint which is kept (protocol.py); a run that leaves out one more domain for
    leave-one-out keeps that of training-domain."""
    seed: Annotated[int, Field(ge=0, le=2**62)] = 0
    """Decides split, weights, batches and augmentation."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """bf16 runs under autocast; auto is fp32 on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPolicy:
    """A plan's masking with every default resolved."""

    warmup: int
    delta: int
    accumulation: int
    end: int
    first: FirstMask
    drop: Drop
    score: Score
    head_learns: bool
    clears_moments: bool
    masks_norms: bool
    exchanges: bool
    grows_largest: bool

    def updates_at(self, masked_step: int) -> bool:
        """Whether masked step t ends with an exchange: t = delta, 2 delta, ... < T_end."""
        return self.exchanges and 0 < masked_step < self.end and masked_step % self.delta == 0

    def gathers_at(self, masked_step: int) -> bool:
        """Whether masked step t's gradients count towards the next exchange (the last n before it)."""
        if not self.exchanges or masked_step <= 0:
            return False
        ahead = -masked_step % self.delta
        return ahead < self.accumulation and masked_step + ahead < self.end


def mask_policy(plan: InvariantPlan) -> MaskPolicy:
    """Resolves defaults by mode and run length (warm-up 20 %, delta 8 %, T_end 60 % of the steps).

    Raises `ConfigError` for a density outside (0, 1], delta <= accumulation, T_end < delta, or a batch whose
    penalty is always 0.
    """
    if plan.base in ("irm", "fishr") and plan.batch < 2:
        raise ConfigError(
            f"batch is {plan.batch}: {plan.base} compares pictures of one domain, at least 2 are needed"
        )
    if not 0 < plan.density <= 1:
        raise ConfigError(
            f"density is {plan.density}; allowed: above 0 and at most 1; published runs use 0.6"
        )
    warmup = plan.warmup if plan.warmup is not None else round(0.2 * plan.steps)
    delta = plan.delta if plan.delta is not None else max(2, round(0.08 * plan.steps))
    end = plan.exchange_end if plan.exchange_end is not None else max(delta, round(0.6 * plan.steps))
    accumulation = plan.accumulation if plan.accumulation is not None else max(1, min(20, delta // 6))
    if delta <= accumulation:
        raise ConfigError(
            f"delta is {delta} and accumulation {accumulation}; allowed: delta from {accumulation + 1} up, "
            f"or accumulation 1 .. {max(1, delta - 1)}"
        )
    if end < delta:
        raise ConfigError(f"exchange_end is {end}, delta {delta}; allowed: exchange_end from {delta} up")
    return MaskPolicy(warmup=warmup, delta=delta, accumulation=accumulation, end=end, **_choices(plan))  # pyright: ignore[reportArgumentType]


def _choices(plan: InvariantPlan) -> dict[str, object]:
    extended, released = plan.mode == "extended", plan.mode == "tmllab"
    head = plan.domain_head or ("frozen" if released else "trained")
    choices: dict[str, object] = {
        "first": plan.first_mask or ("domain-fisher" if extended else "weight"),
        "drop": plan.drop or ("domain" if extended else "magnitude"),
        "score": plan.score or ("mixed" if released else "domain"),
        "head_learns": head == "trained",
        "clears_moments": not released,
        "masks_norms": released,
        "exchanges": plan.method in ("evil", "rigl"),
        "grows_largest": False,
    }
    if plan.method == "rigl":
        # The control knows nothing of domains: magnitude leaves, the largest task gradient enters.
        choices |= {"first": plan.first_mask or "weight", "drop": "magnitude", "score": "task"}
        choices["grows_largest"] = True
    if plan.method in ("random", "magnitude"):
        choices["first"] = "random" if plan.method == "random" else "weight"
    return choices
