"""What a masked training depends on, as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewer.core.checkpoint import flatten_state, unflatten_state
from fewer.core.errors import FileError
from fewer.learn.domains.gradients import GradientAverage
from fewer.learn.domains.training import MaskedTraining


def training_state(training: MaskedTraining) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Everything that the next step depends on: (tensors, JSON-able facts)."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in _modules(training).items():
        tensors |= {f"{prefix}/{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"mask/{k}": v for k, v in training.masks.items()}
    tensors |= {f"first/{k}": v for k, v in training.first_masks.items()}
    tensors |= {f"gathered/{k}": v for k, v in training.average.tensors().items()}
    facts: dict[str, object] = {
        "step": training.step_number,
        "updates": training.updates,
        "counts": training.average.counts,
    }
    for name, optimizer in _optimizers(training).items():
        flat, rest = flatten_state(optimizer.state_dict(), name)
        tensors |= flat
        facts[name] = rest
    return tensors, facts


def restore_training(training: MaskedTraining, tensors: Mapping[str, Tensor], facts: Mapping) -> None:
    """Inverse of `training_state`. Raises `FileError` where the checkpoint is of another network."""
    for prefix, module in _modules(training).items():
        _load(module, under(tensors, prefix), prefix)
    device = training.device
    training.masks = {k: v.to(device).bool() for k, v in under(tensors, "mask").items()}
    training.spare_masks = dict(training.masks)
    training.first_masks = {k: v.to(device).bool() for k, v in under(tensors, "first").items()}
    gathered = {k: v.to(device) for k, v in under(tensors, "gathered").items()}
    training.graphs = {}
    training.average = GradientAverage()
    training.average.restore(gathered, facts["counts"])
    training.updates, training.step_number = list(facts["updates"]), int(facts["step"])
    for name, optimizer in _optimizers(training).items():
        optimizer.load_state_dict(unflatten_state(tensors, facts[name], name))


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name begins with `prefix/`, without it."""
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _modules(training: MaskedTraining) -> dict[str, nn.Module]:
    smooth = {} if training.smooth is None else {"smooth": training.smooth}
    return {"network": training.network, "head": training.head, "base": training.state, **smooth}


def _optimizers(training: MaskedTraining) -> dict[str, torch.optim.Optimizer]:
    return {"optimizer": training.optimizer, "head_optimizer": training.head_optimizer}


def _load(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    own = module.state_dict()
    for name, tensor in own.items():
        given = tensors.get(name)
        if given is None or given.shape != tensor.shape:
            shape = None if given is None else tuple(given.shape)
            raise FileError(
                f"the checkpoint holds {what} {name!r} with shape {shape}, this run needs "
                f"{tuple(tensor.shape)}: it is of another network or another number of classes or domains; "
                "give the settings it was started with, or give another --output"
            )
    module.load_state_dict({name: tensors[name] for name in own})
