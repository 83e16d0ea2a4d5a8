"""Saving an unfinished run and going on with it: learnt tensors and optimizers, for one and the same plan.

Nothing else is state: networks, samples and augmentations are functions of (seed, iteration).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fewer.core.checkpoint import flatten_state, latest_checkpoint, save_checkpoint, unflatten_state
from fewer.core.errors import ConfigError
from fewer.learn.distillation.plan import DistillPlan
from fewer.learn.distillation.task import Synthetic


def save_run(
    folder: Path,
    synthetic: Synthetic,
    optimizers: list[torch.optim.Optimizer],
    plan: DistillPlan,
    step: int,
    pictures: str,
) -> None:
    """Writes a checkpoint of `step` finished iterations on the data with the fingerprint `pictures`."""
    states = {f"optimizer{k}": optimizer.state_dict() for k, optimizer in enumerate(optimizers)}
    tensors, rest = flatten_state(states, "optimizers")
    learnt = {f"learnt/{name}": value.detach() for name, value in synthetic.learnt().items()}
    facts = {"plan": _plan_text(plan), "pictures": pictures, "optimizers": rest}
    save_checkpoint(folder, step, {**learnt, **tensors}, facts)


def resume_run(
    folder: Path | None,
    synthetic: Synthetic,
    optimizers: list[torch.optim.Optimizer],
    plan: DistillPlan,
    pictures: str,
) -> int:
    """Puts the newest checkpoint into `synthetic` and `optimizers`; returns its iteration, 0 if there is
    none.

    Raises `ConfigError` if it belongs to a run with other settings or on other data.
    """
    if folder is None:
        raise ConfigError("--resume needs the checkpoints of an earlier run")
    found = latest_checkpoint(folder)
    if found is None:
        return 0
    if found.facts.get("plan") != _plan_text(plan):
        raise ConfigError("the checkpoint has other settings; use the same ones or leave --resume out")
    if found.facts.get("pictures", pictures) != pictures:
        raise ConfigError(
            "the checkpoint was made from other pictures; give the data it was started with or leave "
            "--resume out"
        )
    saved = {name: found.tensors[f"learnt/{name}"] for name in synthetic.learnt()}
    for name, value in synthetic.learnt().items():
        if saved[name].shape != value.shape:
            raise ConfigError(
                f"the checkpoint is of other data: its {name} are {tuple(saved[name].shape)}, this run's "
                f"{tuple(value.shape)}; give the same data and picture size or leave --resume out"
            )
    with torch.no_grad():
        for name, value in synthetic.learnt().items():
            value.copy_(saved[name])
    tensors = {name: value for name, value in found.tensors.items() if name.startswith("optimizers/")}
    states = unflatten_state(tensors, found.facts["optimizers"], "optimizers")
    for k, optimizer in enumerate(optimizers):
        optimizer.load_state_dict(states[f"optimizer{k}"])
    return found.step


def _plan_text(plan: DistillPlan) -> str:
    """Everything that decides the result; not the time limit."""
    return repr(replace(plan, seconds=None))
