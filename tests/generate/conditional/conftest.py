from dataclasses import replace

import pytest
import torch
from torch import nn

from fewer.core.device import isolated_randomness
from fewer.generate.conditional.build import build_static
from fewer.generate.conditional.condition import (
    ConditionAware,
    ModelCondition,
    condition_aware,
)
from fewer.generate.conditional.params import ClassConditionalParams
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.transformer import SanaParams, SanaTransformer

TINY = ClassConditionalParams(
    architecture="dit", channels=2, out_channels=2, size=6, patch=2, width=16, depth=3, heads=2,
    ffn_ratio=2.0, classes=5,
)  # fmt: skip
SHAPES = {
    "dit tokens": TINY,
    "dit adaln": replace(TINY, adaln=True, tokens=False),
    "u-vit": replace(TINY, architecture="u-vit"),
    "cat tokens": replace(TINY, architecture="cat"),
    "cat adaln": replace(TINY, architecture="cat", adaln=True, tokens=False),
}


def randomise(model: nn.Module, seed: int = 3, scale: float = 0.2) -> None:
    """No weight is zero any more, so that nothing hides behind a zero layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def tiny(shape: str) -> nn.Module:
    with isolated_randomness(0):
        model = build_static(SHAPES[shape])
    randomise(model)
    return model.eval()


def upgraded(shape: str, trained: bool = True, **settings: object) -> ConditionAware:
    plan = ConditionPlan(**{"rank": 4, **settings})
    with isolated_randomness(1):
        model = condition_aware(tiny(shape), plan, ModelCondition(), 16)
    if trained:
        randomise(model.can)
    return model.eval()


def tiny_sana() -> SanaTransformer:
    params = SanaParams(
        in_channels=3, out_channels=3, heads=2, head_dim=8, depth=2, cross_heads=2, cross_head_dim=8,
        caption_channels=6, sample_size=4,
    )  # fmt: skip
    with isolated_randomness(0):
        return SanaTransformer(params).eval()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, times and labels; 4 of 7 samples share their condition with another."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(7, 2, 6, 6, generator=generator)
    return latents, torch.tensor([1.0, 500, 500, 20, 999, 20, 3]), torch.tensor([0, 1, 1, 4, 5, 4, 2])
