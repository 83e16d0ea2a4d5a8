"""Generators in a file of their own, beside the weights of the network that they belong to."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewer.core.config import validate
from fewer.core.errors import FileError
from fewer.generate.conditional.condition import ConditionAware, ConditionPlan
from fewer.generate.conditional.naming import generator_names


def generator_tensors(model: ConditionAware) -> dict[str, Tensor]:
    """The generators' tensors under their names in files; they share memory with the network."""
    return {
        f"{prefix}.{name}": tensor
        for key, prefix in generator_names(model).items()
        for name, tensor in model.can[key].state_dict().items()
    }


def plan_facts(plan: ConditionPlan) -> dict[str, str]:
    """What a file says about how its generators were built."""
    return {
        "kind": plan.kind,
        "targets": ",".join(plan.targets),
        "rank": str(plan.rank),
        "kernels": str(plan.kernels),
    }


def read_plan(facts: Mapping[str, str], file: str) -> ConditionPlan:
    """The plan that `plan_facts` wrote. Raises `FileError` for facts that are damaged."""
    try:
        rank = None if facts["rank"] == "None" else int(facts["rank"])
        settings = {"kind": facts["kind"], "targets": tuple(facts["targets"].split(",")), "rank": rank}
        return validate(ConditionPlan, settings | {"kernels": int(facts["kernels"])})
    except (KeyError, ValueError) as error:
        raise FileError(f"{file!r} has damaged facts: {error}") from error


@torch.no_grad()
def fill_generators(model: ConditionAware, tensors: Mapping[str, Tensor], file: str) -> None:
    """Copies a file's tensors into the generators. Raises `FileError` naming those that don't fit."""
    wanted = generator_tensors(model)
    wrong = wanted.keys() ^ tensors.keys()
    wrong |= {name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape}
    if wrong:
        raise FileError(f"{file!r} does not fit its own plan: {', '.join(sorted(wrong)[:5])}")
    for name, tensor in wanted.items():
        tensor.copy_(tensors[name])
