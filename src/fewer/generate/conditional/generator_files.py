"""Generators in a file of their own, beside the weights of the network that they belong to."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewer.core.config import validate
from fewer.core.errors import FileError
from fewer.core.tensors import TensorInfo
from fewer.generate.conditional.condition import ConditionAware
from fewer.generate.conditional.naming import generator_names
from fewer.generate.conditional.targets import ConditionPlan, build_generator, planned_layers


def generator_tensors(model: ConditionAware) -> dict[str, Tensor]:
    """The generators' tensors under their names in files; they share memory with the network."""
    return {
        f"{prefix}.{name}": tensor
        for key, prefix in generator_names(model.layers).items()
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


def check_generators(
    base: nn.Module, plan: ConditionPlan, condition_dim: int, found: Mapping[str, TensorInfo], file: str
) -> None:
    """Raises `FileError` naming tensors that don't fit, before `base` is changed or memory is taken."""
    layers = planned_layers(base, plan)
    wanted: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        for key, prefix in generator_names(layers).items():
            generator = build_generator(plan, base.get_submodule(layers[key][0]), condition_dim)
            wanted |= {f"{prefix}.{n}": tuple(t.shape) for n, t in generator.state_dict().items()}
    wrong = wanted.keys() ^ found.keys()
    wrong |= {name for name in wanted.keys() & found.keys() if wanted[name] != found[name].shape}
    if wrong:
        raise FileError(f"{file!r} does not fit its own plan: {', '.join(sorted(wrong)[:5])}")


@torch.no_grad()
def fill_generators(model: ConditionAware, tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors that `check_generators` has let pass into the generators."""
    for name, tensor in generator_tensors(model).items():
        tensor.copy_(tensors[name])
