"""Who does what: how many bands, which exchange, and why."""

import logging
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.errors import ConfigError

logger = logging.getLogger(__name__)

Mode = Literal["auto", "sync", "displaced", "naive"]
StateRule = Literal["corrected", "replace", "frozen"]
NormRule = Literal["sync", "corrected", "stale", "separate", "frozen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelPlan:
    """How one image is spread over devices. The defaults choose by themselves."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    """Ranks in all."""
    guidance: Literal["auto", "batched", "split"] = "auto"
    """With `split`, half of the ranks denoise without and half with the prompt; `batched`: all do both."""
    mode: Mode = "auto"
    """`sync` is exact; `displaced` uses neighbours' activations of the step before; `naive` uses none."""
    warmup_steps: Annotated[int, Field(ge=0)] = 4
    """Displaced: exact steps after the first, which is always exact (the paper's default makes 5)."""
    state_rule: StateRule = "replace"
    """Displaced linear attention: how a stale sum is brought up to date (distrifusion §2.2). `corrected` is
    nearer where all bands change alike, as with random weights; trained models' bands do not, and there it
    is several times worse (benchmarks/parallel_quality.py)."""
    halo: Literal["sync", "stale"] = "stale"
    """Displaced: border rows of convolutions fresh or of the step before."""
    border: Literal["auto", "tokens", "hidden"] = "auto"
    """Border rows of a Mix-FFN travel before its widening (a fifth of the bytes) or behind it (less work);
    `auto` is before, unless `choose_plan` finds the link fast."""
    norm_rule: NormRule = "corrected"
    """Displaced GroupNorm: the paper's correction, or one of its ablations."""
    bucket: Annotated[int, Field(ge=1)] = 60
    """Displaced: so many small exchanges travel as one (the reference's `comm_checkpoint`)."""
    axis: Literal["auto", "rows", "columns"] = "auto"
    """Which side is cut; `auto` cuts the longer one."""

    @property
    def guidance_ways(self) -> int:
        """2 where the two halves of guidance run on different ranks."""
        return 2 if self.guidance == "split" else 1

    @property
    def bands(self) -> int:
        """Ranks that share one picture."""
        return self.devices // self.guidance_ways

    def check(self) -> "ParallelPlan":
        """Returns itself. Raises `ConfigError` where two fields contradict each other."""
        if self.guidance == "split" and self.devices % 2:
            raise ConfigError(
                f"guidance split needs an even number of devices, not {self.devices}; use guidance=batched"
            )
        return self

    def for_steps(self, steps: int) -> "ParallelPlan":
        """The plan for so many steps: displaced with nothing but warm-up becomes exact, and warns."""
        if self.mode != "displaced" or steps > self.warmup_steps + 1:
            return self
        logger.warning(
            "%d steps are all warm-up (%d exact ones come first), so every step is exact; take more steps or "
            "fewer warm-up steps to use activations of the step before", steps, self.warmup_steps + 1
        )  # fmt: skip
        return replace(self, mode="sync")

    def explain(self) -> str:
        """The plan in one sentence."""
        side = "the longer side" if self.axis == "auto" else self.axis
        what = "the whole picture" if self.bands == 1 else f"{self.bands} bands of {side}"
        what += ", guidance on two halves" * (self.guidance_ways - 1)
        if self.bands == 1:
            return f"{what}: nothing to exchange but the result"
        how = {
            "sync": "exact: sums and border rows are exchanged in every layer",
            "naive": "bands ignore each other: fast, with seams",
            "displaced": f"{self.warmup_steps + 1} exact steps, then activations of the step before "
            f"(state {self.state_rule}, norm {self.norm_rule}, border rows {self.halo})",
        }
        return f"{what}, {how.get(self.mode, self.mode)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a measurement of the connection gave."""

    latency_seconds: float
    """One small all-reduce."""
    bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a model asks for in one step with one sample."""

    step_seconds: float
    """On one device."""
    layers: int
    exact_bytes: float
    """Received per rank and step by the exact exchange (distrifusion §2.3)."""
    linear_attention: bool
    """Sums couple its tokens, so exactness is cheap; else all keys and values would have to travel."""
    row_bytes: float = 0.0
    """Of one border row, before the feed-forward widens it; 0 where nothing widens."""
    widening: int = 5
    """By how much it is widened."""
    widening_bytes: float = 0.0
    """Weights that widening a few rows reads again."""


# Bytes a second at which a GPU reads weights; it decides nothing but where border rows travel.
WEIGHT_READING = 2e12


def choose_plan(plan: ParallelPlan, work: Work, link: Link, guided: bool) -> ParallelPlan:
    """Fills in what is `auto`, by the cost model t = t₁/bands + collectives · latency + bytes / bandwidth.

    With guidance, splitting it costs one tiny exchange a step and doubles no work; cutting the picture
    costs two exchanges a layer. Both are priced and the cheaper one is taken.
    """
    plan = plan.check()
    if plan.mode == "auto":
        plan = replace(plan, mode="sync" if work.linear_attention else "displaced")
    if plan.border == "auto":
        more = (work.widening - 1) * work.row_bytes / link.bytes_per_second
        again = work.widening_bytes / WEIGHT_READING
        plan = replace(plan, border="hidden" if more < again else "tokens")
    if plan.guidance != "auto":
        return plan
    if not guided or plan.devices % 2:
        return replace(plan, guidance="batched")
    options = [replace(plan, guidance=guidance) for guidance in ("split", "batched")]
    return min(options, key=lambda option: step_seconds(option, work, link, guided))


def step_seconds(plan: ParallelPlan, work: Work, link: Link, guided: bool) -> float:
    """Predicted time of one step; asynchronous exchange is counted as hidden."""
    samples = 2 // plan.guidance_ways if guided else 1
    compute = samples * work.step_seconds / plan.bands
    result = link.latency_seconds if plan.devices > 1 else 0.0
    if plan.bands == 1 or plan.mode == "naive":
        return compute + result
    exchange = 2 * work.layers * link.latency_seconds + samples * work.exact_bytes / link.bytes_per_second
    return compute + result + (0.0 if plan.mode == "displaced" else exchange)
