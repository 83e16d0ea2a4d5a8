"""Which layers of a network follow a condition, and the generator of each group of them."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from torch import nn

from fewer.core.errors import ConfigError
from fewer.core.modules import find_modules
from fewer.generate.conditional.generators import KernelBank, WeightGenerator
from fewer.generate.conditional.layers import Form, weight_shape

Target = Literal["patch_embed", "dwconv", "attn_out", "head", "qkv"]
TARGETS: dict[str, str] = {
    "patch_embed": r"(x_embedder|patch_embed|pos_embed)\.proj",
    "dwconv": r".+",  # told by what it is
    "attn_out": r".+\.(attn|attn1)\.(proj|to_out\.0)",
    "head": r"final_layer\.linear|decoder_pred|proj_out|proj_out_2",
    "qkv": r".+\.(attn|attn1)\.(qkv|to_q|to_k|to_v)",
}
"""Names of the layers in DiT, U-ViT, CaT, Sana and diffusers' DiT. Head and qkv are for the ablation."""
SHARED = ("attn_out", "qkv")
"""One generated matrix serves all blocks (each keeps its own static one): it is large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionPlan:
    """Which layers follow the condition, and how."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Literal["can", "aks"] = "can"
    """Generated weights, or a mixture of `kernels` base kernels."""
    targets: tuple[Target, ...] = ("patch_embed", "dwconv", "attn_out")
    rank: Annotated[int, Field(ge=1, le=4096)] | None = 64
    """Width of the generators' bottleneck; none generates straight from the condition."""
    kernels: Annotated[int, Field(ge=2, le=64)] = 4
    zero_init: bool = True
    form: Form = "split"
    """How layers compute; see `ConditionAwareLayer`. Layers that cannot be fused take split."""


def planned_layers(base: nn.Module, plan: ConditionPlan) -> dict[str, list[str]]:
    """Key of each generator -> the layers of `base` that it serves. Raises as `target_layers`."""
    if not plan.targets:
        raise ConfigError(f"no targets were given; allowed: {', '.join(TARGETS)}")
    layers: dict[str, list[str]] = {}
    for target in plan.targets:
        names = target_layers(base, target)
        shapes = {name: weight_shape(base.get_submodule(name)) for name in names}
        groups = _shared(shapes) if target in SHARED else [[name] for name in names]
        for number, group in enumerate(groups):
            layers[target if len(groups) == 1 else f"{target}_{number}"] = group
    return layers


def build_generator(plan: ConditionPlan, layer: nn.Module, condition_dim: int) -> nn.Module:
    """What generates the addition to `layer`'s weight, from a condition of that width."""
    shape = weight_shape(layer)
    assert shape is not None
    if plan.kind == "can":
        return WeightGenerator(condition_dim, shape, plan.rank, plan.zero_init)
    return KernelBank(condition_dim, shape, plan.kernels, plan.zero_init)


def target_layers(base: nn.Module, target: str) -> list[str]:
    """Names of the layers a target means. Raises `ConfigError` for one that is unknown or not there."""
    if target not in TARGETS:
        raise ConfigError(f"target {target!r} is not known; allowed: {', '.join(TARGETS)}")
    if target == "dwconv":
        names = [
            name
            for name, module in find_modules(base, lambda _, module: isinstance(module, nn.Conv2d))
            if module.groups == module.in_channels > 1  # pyright: ignore
        ]
    else:
        names = [
            name
            for name, module in find_modules(base, lambda name, _: bool(re.fullmatch(TARGETS[target], name)))
            if weight_shape(module) is not None
        ]
    if not names:
        raise ConfigError(
            f"{type(base).__name__} has no layer for target {target!r}"
            + ("; build it with depthwise=True" if target == "dwconv" else "")
        )
    return names


def _shared(shapes: dict[str, tuple[int, ...] | None]) -> list[list[str]]:
    """Layers of one role (the last two parts of the name) and shape, which one generator serves."""
    groups: dict[object, list[str]] = {}
    for name, shape in shapes.items():
        groups.setdefault((tuple(name.split(".")[-2:]), shape), []).append(name)
    return list(groups.values())
