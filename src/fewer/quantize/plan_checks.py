"""Everything about a model, its plan and the settings that can be refused before any work is done."""

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from fewer.core.errors import ConfigError, DataError
from fewer.quantize.lowrank import check_rank
from fewer.quantize.parts import finite
from fewer.quantize.roles import SPLIT_NAMES, Group, Plan, eligible, weight_of

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_plan(module: nn.Module, plan: Plan, rank: int) -> None:
    """Raises `ConfigError` (a rank, a plan of another model, number formats that are not quantized) or
    `DataError` (NaN or Inf), naming the layer.
    """
    if type(rank) is not int:
        raise ConfigError(f"rank was {rank!r}; it must be a whole number: 0 for no branch, 32 is usual")
    if rank < 0:
        raise ConfigError(f"rank {rank} is negative; 0 leaves the low-rank branch out, 32 is usual")
    pieces = {f"{name}.{piece}": name for name, _ in plan.splits for piece in SPLIT_NAMES}
    widths = {f"{name}.{p}": w for name, ws in plan.splits for p, w in zip(SPLIT_NAMES, ws, strict=True)}
    for choice in plan.choices:
        if choice.method == "svdquant":
            check_rank(rank, choice.shape, choice.name)
        if choice.method == "keep":
            continue
        layer = _layer(module, pieces.get(choice.name, choice.name))
        weight = weight_of(layer)
        if choice.name not in pieces and tuple(weight.shape) != choice.shape:
            raise ConfigError(
                f"layer {choice.name!r} is {weight.shape[0]} x {weight.shape[1]}, {choice.shape} by the "
                f"plan: it was made for another model"
            )
        widths[choice.name] = choice.shape[1]
        _check_numbers(weight, "weight", choice.name)
        if layer.bias is not None:
            _check_numbers(layer.bias.detach(), "bias", choice.name)  # pyright: ignore
    for group in plan.groups:
        _check_group(module, group, widths)


def _layer(module: nn.Module, name: str) -> nn.Module:
    try:
        layer = module.get_submodule(name)
    except AttributeError:
        layer = None
    if layer is None or not eligible(layer):
        found = "no such layer" if layer is None else f"a {type(layer).__name__} there"
        raise ConfigError(
            f"the plan quantizes {name!r}, but {type(module).__name__} has {found}: plan_layers(module) "
            f"makes a plan of this model"
        )
    return layer


def _check_numbers(tensor: Shaped[Tensor, "*shape"], what: str, name: str) -> None:
    if tensor.dtype not in FLOATS or tensor.is_meta:
        found = "on the meta device, without values" if tensor.is_meta else str(tensor.dtype)
        raise ConfigError(
            f"the {what} of layer {name!r} is {found}; numbers in bf16, fp16, fp32 or fp64 are quantized: "
            f"load them, or cast with module.to(torch.bfloat16)"
        )
    if not finite(tensor):
        raise DataError(
            f"the {what} of layer {name!r} has NaN or Inf; repair the checkpoint first (or take bf16, if it "
            f"was cast to fp16, which ends at 65504)"
        )


def _check_group(module: nn.Module, group: Group, widths: dict[str, int]) -> None:
    names = [name for part in group.parts for name in part]
    if len(found := {widths[name] for name in names}) > 1:
        raise ConfigError(
            f"group {group.key!r} has layers of {' and '.join(map(str, sorted(found)))} inputs "
            f"({', '.join(names[:5])}); layers that share smoothing scales read inputs of one width"
        )
    try:
        module.get_submodule(group.block)
    except AttributeError as error:
        raise ConfigError(
            f"group {group.key!r} is compared by block {group.block!r}, which {type(module).__name__} has not"
        ) from error
