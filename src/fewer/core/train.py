"""The training loop of every room, visible from top to bottom.

A method hands over `step(batch, generator) -> loss`; data order and every random draw are functions of
(seed, step) alone. That is why a run that was stopped and resumed ends with bit-identical weights on the
CPU: nothing else has to be remembered than modules, optimizer, averages and the step.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fewer.core.checkpoint import (
    copy_into,
    flatten_state,
    latest_checkpoint,
    save_checkpoint,
    unflatten_state,
)
from fewer.core.device import isolated_randomness, seeded
from fewer.core.errors import ConfigError, DataError
from fewer.core.files import output_folder
from fewer.core.progress import Progress, SilentProgress
from fewer.core.ranks import rank, world_size
from fewer.core.unbroken import unbroken

logger = logging.getLogger(__name__)

Losses = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """How long, how fast, and where to save."""

    steps: int
    """Optimizer steps in all, those before a resume included."""
    schedule: Literal["constant", "cosine", "seven-sixteenths"] = "cosine"
    """`seven-sixteenths`: cos(7 pi t / 16) of semi-supervised learning, which ends at a fifth."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    final_rate: float = 0.1
    """With `cosine`: the share of the learning rate that is left at the end."""
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    """Keeps an exponential moving average of all parameters under the name `<module>.ema`."""
    checkpoint_folder: Path | None = None
    checkpoint_every: int = 500
    keep: int = 2
    look_every: int = 1
    """Steps between two looks at the loss. A look waits for the device, and a GPU idles meanwhile; a loss
    that is not finite is noticed at the next look, and what came since the last checkpoint is not saved."""
    resume: bool = False
    seconds: float | None = None
    """Ends after so much time instead: `schedule` then runs over the time, not over the steps. What comes
    before the first look (compiling, mostly) counts as time, but not for the schedule."""
    seed: int = 0
    identity: Mapping[str, str] = field(default_factory=dict)
    """What else a resumed run must share with the one that was started (the data's fingerprint, settings that
    decide the result), by name."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """Where the run ended: `losses` holds one entry a step made in this call."""

    step: int
    losses: list[float]
    seconds: float
    averages: dict[str, dict[str, Tensor]]
    """Per module: the EMA of its parameters (empty without `ema_decay`)."""


def fit(
    plan: FitPlan,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    step: Callable[..., Losses],
    batch_at: Callable[[int, torch.Generator], object],
    progress: Progress | None = None,
) -> FitResult:
    """Runs `plan.steps` optimizer steps; `step(batch, generator)` gives the loss or {"loss": …, figures…}.

    Raises `DataError` when the loss is no longer finite (the last good state stays saved) and `ConfigError`
    for a plan that cannot be. With torch.distributed initialised, gradients are averaged over the ranks.
    """
    if plan.steps < 1:
        raise ConfigError(f"steps is {plan.steps}; at least 1 is needed")
    progress = progress or SilentProgress()
    if plan.checkpoint_folder and rank() == 0:
        output_folder(plan.checkpoint_folder)  # before the first step, not after it
    averages = _start_averages(modules) if plan.ema_decay is not None else {}
    base_rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    first = _restore(plan, modules, optimizer, averages) if plan.resume else 0
    losses: list[float] = []
    unseen: list[dict[str, Tensor]] = []
    began = warm = time.monotonic()
    progress.start("training", plan.steps - first)
    done = first
    bad = False
    try:
        for index in range(first, plan.steps):
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * learning_rate_factor(plan, index, _spent(plan, began, warm))
            saves = plan.checkpoint_folder and (index + 1) % plan.checkpoint_every == 0
            last = index + 1 == plan.steps or _spent(plan, began) >= 1
            looks = saves or (index + 1) % plan.look_every == 0 or last
            with unbroken():
                unseen.append(_one_step(plan, modules, optimizer, step, batch_at, index))
                seen = _look(unseen, index) if looks else []
                _advance_averages(plan, modules, averages, index)
                done = index + 1
            if looks:
                warm = time.monotonic() if not losses else warm
                losses += [figures["loss"] for figures in seen]
                unseen.clear()
                progress.advance(len(seen), **seen[-1])
            if last:
                break
            if saves:
                _save(plan, done, modules, optimizer, averages)
    except DataError:
        bad = (
            plan.look_every > 1
        )  # with a look at every step a bad one is not made, and what is there is good
        raise
    finally:
        progress.stop()
        # Also after Ctrl-C or a bad batch: what was reached is kept, and --resume goes on from there.
        if plan.checkpoint_folder and done > first and not bad:
            _save(plan, done, modules, optimizer, averages)
    return FitResult(done, losses, time.monotonic() - began, averages)


def _look(unseen: list[dict[str, Tensor]], index: int) -> list[dict[str, float]]:
    """Waits for the device once, for the figures of all steps since the last look, step `index` included."""
    names = list(unseen[-1])
    columns = torch.stack([torch.stack([figures[name].double() for name in names]) for figures in unseen])
    seen = [dict(zip(names, row, strict=True)) for row in columns.tolist()]
    for figures, at in zip(seen, range(index + 1 - len(seen), index + 1), strict=True):
        if not math.isfinite(figures["loss"]):
            raise DataError(
                f"the loss is {figures['loss']} at step {at} (batch {at}); it was not saved; "
                "try a lower learning rate, or --dtype fp32"
            )
    return seen


def _spent(plan: FitPlan, began: float, warm: float | None = None) -> float:
    """Share of the time limit that is over; 0 without one. From `warm` on, if that is when the work began."""
    if plan.seconds is None:
        return 0.0
    start = began if warm is None else warm
    return (time.monotonic() - start) / max(1e-9, began + plan.seconds - start)


def learning_rate_factor(plan: FitPlan, index: int, spent: float = 0.0) -> float:
    """Factor on the learning rate at step `index`: linear warm-up, then constant or half a cosine.

    `spent` is the share of `plan.seconds` that is over, if there is such a limit.
    """
    if index < plan.warmup:
        return (index + 1) / plan.warmup
    if plan.schedule == "constant":
        return 1.0
    share = (index - plan.warmup) / max(1, plan.steps - plan.warmup)
    if plan.seconds is not None:
        share = min(1.0, spent)
    if plan.schedule == "seven-sixteenths":
        return math.cos(7 / 16 * math.pi * share)
    return plan.final_rate + (1 - plan.final_rate) * 0.5 * (1 + math.cos(math.pi * share))


def _one_step(
    plan: FitPlan,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    step: Callable[..., Losses],
    batch_at: Callable[[int, torch.Generator], object],
    index: int,
) -> dict[str, Tensor]:
    with isolated_randomness(int(seeded(plan.seed, index, 2).initial_seed()) % 2**32):
        batch = batch_at(index, seeded(plan.seed, index, 0))
        optimizer.zero_grad(set_to_none=True)
        losses = step(batch, seeded(plan.seed, index, 1))
    losses = losses if isinstance(losses, Mapping) else {"loss": losses}
    figures = _mean_over_ranks({name: value.detach() for name, value in losses.items()})
    if plan.look_every == 1 and not torch.isfinite(figures["loss"]):
        return figures
    losses["loss"].backward()
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    average_gradients(parameters)
    if plan.clip_norm is not None:
        norm = nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], plan.clip_norm)
        if plan.look_every == 1 and not torch.isfinite(norm):
            return {**figures, "loss": norm}
        figures["loss"] = torch.where(torch.isfinite(norm), figures["loss"], norm.to(figures["loss"].dtype))
    optimizer.step()
    return figures


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the ranks, in one flat all-reduce a dtype."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:  # unused here, perhaps used on another rank
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= world_size()
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _mean_over_ranks(figures: dict[str, Tensor]) -> dict[str, Tensor]:
    if world_size() == 1:
        return figures
    values = torch.stack([figure.double() for figure in figures.values()])
    torch.distributed.all_reduce(values)
    return dict(zip(figures, values / world_size(), strict=True))


def _start_averages(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value.detach().clone().float() for key, value in module.named_parameters()}
        for name, module in modules.items()
    }


@torch.no_grad()
def _advance_averages(
    plan: FitPlan, modules: Mapping[str, nn.Module], averages: dict[str, dict[str, Tensor]], index: int
) -> None:
    if plan.ema_decay is None:
        return
    # The first steps are forgotten faster, so that a short run's average is not mostly its random start.
    decay = min(plan.ema_decay, (1 + index) / (10 + index))
    for name, module in modules.items():
        found = dict(module.named_parameters())
        if found:
            values = [value.detach().float() for value in found.values()]
            torch._foreach_lerp_([averages[name][key] for key in found], values, 1 - decay)


def _save(
    plan: FitPlan,
    done: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    averages: dict[str, dict[str, Tensor]],
) -> None:
    if rank() != 0 or plan.checkpoint_folder is None:
        return
    tensors = {
        f"{name}/{key}": v for name, module in modules.items() for key, v in module.state_dict().items()
    }
    tensors |= {f"ema:{name}/{key}": v for name, average in averages.items() for key, v in average.items()}
    optimizer_tensors, rest = flatten_state(optimizer.state_dict(), "optimizer")
    facts = {"seed": plan.seed, "steps": plan.steps, "identity": dict(plan.identity), "optimizer": rest}
    facts["optimizer_kind"] = type(optimizer).__name__
    save_checkpoint(plan.checkpoint_folder, done, tensors | optimizer_tensors, facts, plan.keep)


def check_identity(facts: Mapping[str, object], identity: Mapping[str, str]) -> None:
    """Raises `ConfigError` where a checkpoint's facts tell of another run than this one."""
    started = facts.get("identity", {})
    assert isinstance(started, dict)
    for name, value in identity.items():
        if started.get(name, value) != value:
            raise ConfigError(
                f"the run was started with {name} {started[name]}, not {value}; resume with what it was "
                "started with, or give another output folder"
            )


def _restore(
    plan: FitPlan,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    averages: dict[str, dict[str, Tensor]],
) -> int:
    found = latest_checkpoint(plan.checkpoint_folder) if plan.checkpoint_folder else None
    if found is None:
        return 0
    kind = found.facts.get("optimizer_kind", type(optimizer).__name__)  # not noted in older runs
    if kind != type(optimizer).__name__:
        raise ConfigError(f"the run was started with {kind}, not {type(optimizer).__name__}; give that")
    check_identity(found.facts, plan.identity)
    if found.facts["seed"] != plan.seed:
        raise ConfigError(
            f"the run was started with seed {found.facts['seed']}, not {plan.seed}; give that seed"
        )
    for name, module in modules.items():
        copy_into(module, found.tensors, name)
        for key, average in averages.get(name, {}).items():
            average.copy_(found.tensors.get(f"ema:{name}/{key}", average))
    state = unflatten_state(found.tensors, found.facts["optimizer"], "optimizer")
    if [len(g["params"]) for g in state["param_groups"]] != [
        len(g["params"]) for g in optimizer.param_groups
    ]:
        raise ConfigError(
            "the checkpoint's run trains other parameters; resume with the options it began with"
        )
    optimizer.load_state_dict(state)
    logger.info("resuming at step %d", found.step)
    return min(found.step, plan.steps)
