"""What a network costs: multiply-adds a sample and step, by tokens, by condition and by generated weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewer.core.modules import parameter_count
from fewer.generate.conditional.bricks import SoftmaxAttention
from fewer.generate.conditional.condition import ConditionAware
from fewer.generate.transformer.attention import CrossAttention, LinearAttention


@dataclass(frozen=True, slots=True)
class Profile:
    """Counts; MACs are of one sample and one step."""

    parameters: int
    generator_parameters: int
    """Part of `parameters`."""
    token_macs: int
    """Of everything that runs once a token; equal with and without generated weights."""
    condition_macs: int
    """Of what runs once a condition: embeddings of time and class, adaLN's modulations."""
    generation_macs: int
    """Of generating weights, once a unique condition."""


@torch.no_grad()
def profile(model: nn.Module, *inputs: Tensor) -> Profile:
    """Counts by running the static network once on `inputs` of batch size 1."""
    generators = model.can if isinstance(model, ConditionAware) else nn.ModuleDict()
    static = model.static_twin() if isinstance(model, ConditionAware) else model
    counted = {"token": 0, "condition": 0}
    hooks = [
        module.register_forward_hook(_counting(counted))
        for module in static.modules()
        if isinstance(module, nn.Linear | nn.Conv2d | SoftmaxAttention | LinearAttention | CrossAttention)
    ]
    try:
        static(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Profile(
        parameters=parameter_count(model),
        generator_parameters=parameter_count(generators),
        token_macs=counted["token"],
        condition_macs=counted["condition"],
        generation_macs=sum(generator.macs() for generator in generators.values()),  # pyright: ignore
    )


def _counting(counted: dict[str, int]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        first = inputs[0]
        kind = "condition" if first.ndim == 2 else "token"
        counted[kind] += _macs(module, inputs, output)

    return count


def _macs(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    features = inputs[0]
    if isinstance(module, nn.Linear):
        return features.numel() // features.shape[-1] * module.in_features * module.out_features
    if isinstance(module, nn.Conv2d):
        return output[0, 0].numel() * output.shape[0] * module.weight.numel()
    tokens, width = features.shape[-2:]
    if isinstance(module, SoftmaxAttention):
        return 2 * tokens * tokens * width
    if isinstance(module, CrossAttention):  # its second input is the text's keys and values
        return 2 * tokens * inputs[1].keys.shape[2] * module.to_q.out_features
    assert isinstance(module, LinearAttention)
    inner = module.to_q.out_features
    return 2 * tokens * inner * (inner // module.heads + 1)  # the state of [v; 1] kᵀ, written and read
