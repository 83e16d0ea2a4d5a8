"""From settings to a network, static or condition-aware."""

import torch
from torch import nn

from fewer.core.device import isolated_randomness
from fewer.generate.conditional.cat import CaT
from fewer.generate.conditional.condition import (
    ConditionAware,
    ModelCondition,
    condition_aware,
)
from fewer.generate.conditional.dit import DiT
from fewer.generate.conditional.params import ClassConditionalParams
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.conditional.u_vit import UViT

CLASS_SPREAD = 0.5


def build_static(params: ClassConditionalParams) -> DiT | UViT | CaT:
    """The network without generated weights. Raises `ConfigError` for contradictions."""
    return {"dit": DiT, "u-vit": UViT, "cat": CaT}[params.architecture](params)


def build(params: ClassConditionalParams, plan: ConditionPlan | None, seed: int) -> nn.Module:
    """A new network, condition-aware where there is a plan; same seed, same static weights in either case."""
    with isolated_randomness(seed):
        static = build_static(params)
        _xavier(static)
        _balance(static)
        if plan is None:
            return static
        return condition_aware(static, plan, ModelCondition(), params.width)


@torch.no_grad()
def _xavier(model: nn.Module) -> None:
    """Linear layers of the blocks as in DiT: Xavier-uniform, no bias; zero layers stay zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and bool(module.weight.any()):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def _balance(model: nn.Module) -> None:
    """Class vectors start about as large as the time's.

    DiT starts both small. After Xavier the time's are some 25 times as large as 0.02, and whatever reads
    their sum (modulation, generators) would not see the class for a thousand steps.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=CLASS_SPREAD)


def plan_of(model: nn.Module) -> ConditionPlan | None:
    """The plan of a condition-aware network, none of a static one."""
    return model.plan if isinstance(model, ConditionAware) else None


def params_of(model: nn.Module) -> ClassConditionalParams:
    """The shape of a network, static or not."""
    base = model.base if isinstance(model, ConditionAware) else model
    assert isinstance(base, DiT | UViT | CaT)
    return base.params
