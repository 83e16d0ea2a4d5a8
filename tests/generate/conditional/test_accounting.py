"""The counts equal the closed formulas, and torch's own counter where that can see."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewer.generate.conditional.accounting import profile
from fewer.generate.conditional.build import build_static
from fewer.generate.conditional.condition import ModelCondition, condition_aware
from fewer.generate.conditional.for_sana import condition_sana
from fewer.generate.conditional.targets import ConditionPlan
from tests.generate.conditional.conftest import SHAPES, tiny, tiny_sana, upgraded


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 2, 6, 6), torch.tensor([3.0]), torch.tensor([1])


@pytest.mark.parametrize("rank", [4, None])
def test_equals_the_formulas(rank: int | None) -> None:
    depth, ratio, width, tokens, area = 3, 2, 16, 9, 8
    model = upgraded("dit adaln", rank=rank)
    counted = profile(model, *inputs())
    linear = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * ratio * tokens * width**2
    assert counted.token_macs == depth * (linear + 9 * ratio * tokens * width) + 2 * tokens * area * width
    sizes = [9 * ratio * width] * depth + [area * width, width * width]
    each = [(width * rank + rank * size) if rank else width * size for size in sizes]
    assert counted.generation_macs == sum(each)
    biases = sum(size + (rank or 0) for size in sizes)
    assert counted.generator_parameters == sum(each) + biases
    assert counted.parameters == sum(p.numel() for p in model.parameters())


def test_equals_the_worked_example() -> None:
    """d = 512, ratio 4, rank 64, 13 blocks, 256 tokens of 2x2x4: 33 M against 12.3 G."""
    shape = replace(
        SHAPES["dit adaln"], size=32, channels=4, out_channels=4, width=512, depth=13, heads=8, ffn_ratio=4.0
    )
    with torch.device("meta"):
        model = condition_aware(build_static(shape), ConditionPlan(), ModelCondition(), 512)
    assert sum(generator.macs() for generator in model.can.values()) == 33_128_448


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_costs_what_the_static_twin_costs(shape: str) -> None:
    model = upgraded(shape)
    merged = model.merge(model.embed(*inputs()[1:]))
    ours, twin = profile(merged, *inputs()), profile(tiny(shape), *inputs())
    assert ours == twin and ours.generation_macs == 0
    assert profile(model, *inputs()).token_macs == twin.token_macs
    with FlopCounterMode(display=False) as theirs, torch.no_grad():
        merged(*inputs())
    attention = 0
    if shape in ("dit tokens", "dit adaln", "u-vit"):  # torch may not count the CPU's fused attention
        tokens = 9 + (0 if shape == "dit adaln" else 2)
        attention = 3 * 2 * tokens**2 * 16
    total = ours.token_macs + ours.condition_macs
    assert theirs.get_total_flops() / 2 in (total, total - attention)


def test_sana_is_counted_whole_too() -> None:
    """Attention to the text, and the fused attention that torch's counter does not see on a CPU."""
    inputs = (torch.randn(1, 3, 4, 4), torch.tensor([10.0]), torch.randn(1, 5, 6))
    model = condition_sana(tiny_sana(), ConditionPlan(rank=2))
    counted = profile(model, *inputs)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as theirs, torch.no_grad():
        model.static_twin()(*inputs)
    total = counted.token_macs + counted.condition_macs
    across = 2 * 2 * 16 * 5 * 16  # two blocks: queries with keys, weights with values
    assert theirs.get_total_flops() / 2 in (total, total - across)
