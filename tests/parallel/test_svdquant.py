"""Bands of a 4-bit model give the bits of its own one-device output.

Activations are rounded to 8 bits, which makes a large difference of a small one, so nothing may differ.
Products give a row the same bits whatever rows stand beside it, and attention's sums leave no trace of their
order (`exact` in linear attention).
"""

import re

import pytest
import torch
from torch import nn

from fewer.core.modules import replace_modules
from fewer.generate.engine import accelerate
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.attach import parallelize
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from fewer.quantize.formats import FORMATS, encode_weight, int8_rows
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.linear import QuantizedLinear
from tests.parallel.test_sana import error, sample

LAYERS = re.compile(r".*\.(attn1\.to_([qkv]|out\.0)|attn2\.to_(q|out\.0)|ff\.conv_(inverted|point))")


def in_four_bits(model: SanaTransformer) -> SanaTransformer:
    """Codes rounded to nearest and a random branch: what calibration finds does not matter here."""
    generator = torch.Generator().manual_seed(0)
    downs: dict[str, torch.Tensor] = {}

    def build(name: str, module: nn.Module) -> nn.Module | None:
        if not LAYERS.fullmatch(name):
            return None
        weight = module.weight.detach().flatten(1)
        codes, scales = encode_weight(weight, FORMATS["h8"])
        # Queries, keys and values share what they do to their rows.
        key = re.sub(r"to_[qkv]$", "joint", name)
        down = downs.setdefault(key, torch.randn(8, weight.shape[1], generator=generator) * 0.1)
        layer = QuantizedLayer(
            format="h8", shape=tuple(weight.shape), codes=codes, scales=scales,
            smooth=torch.ones(weight.shape[1]), down=down,
            up=torch.randn(weight.shape[0], 8, generator=generator) * 0.1,
            bias=None if module.bias is None else module.bias.detach(),
            convolution=isinstance(module, nn.Conv2d),
        )  # fmt: skip
        return QuantizedLinear(layer)

    assert len(replace_modules(model, build)) == 8 * len(model.transformer_blocks)
    return model


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("devices", "guidance"), [(2, "batched"), (3, "batched"), (4, "split"), (5, "batched"), (8, "batched")]
)
@torch.no_grad()
def test_quantized_bands_equal_the_quantized_model_bit_for_bit(
    fused: bool, devices: int, guidance: str, toy: SanaTransformer
) -> None:
    full = sample(toy, 2)
    model = in_four_bits(toy)
    model = accelerate(model, graphs=True) if fused else model
    expected = sample(model, 2)
    assert error(expected, full) > 1e-3
    plan = ParallelPlan(devices=devices, mode="sync", guidance=guidance)  # pyright: ignore[reportArgumentType]

    results = run_simulated(devices, lambda group: _on_rank(model, plan, group))
    assert all(torch.equal(result, expected) for result in results)


@torch.no_grad()
def test_it_holds_in_double_precision_and_where_rows_do_not_divide(toy: SanaTransformer) -> None:
    model = in_four_bits(toy).double()
    plan = ParallelPlan(devices=3, mode="sync")
    for height, width in ((7, 5), (6, 11)):  # the second is cut into columns
        expected = sample(model, 2, height=height, width=width)
        results = run_simulated(
            3, lambda group, h=height, w=width: sample(parallelize(model, plan, group), 2, height=h, width=w)
        )
        assert all(error(result, expected) <= 1e-12 for result in results)


@pytest.mark.parametrize("devices", [1, 3])
@torch.no_grad()
def test_it_holds_with_several_threads_a_device(devices: int, toy: SanaTransformer) -> None:
    """With two threads a convolution sums in another order than a product: both sides take the same."""
    model = accelerate(in_four_bits(toy), graphs=True)
    plan, threads = ParallelPlan(devices=devices, mode="sync"), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = sample(model, 2)
        results = run_simulated(devices, lambda group: _on_rank(model, plan, group))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("noise", [1e-5, 1e-4, 1e-3])
def test_why_nothing_may_differ(noise: float) -> None:
    """Rounding to a step s makes of a small difference d one of mean square s |d|: 1e-7 becomes 5e-5.

    With probability |d| / s a code moves, and then by s. So the bar of 1e-5 in fp32 asks for equal bits, and
    in bf16 (d of 2e-3) a single rounding adds about 8e-3, as was found on GPUs.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 2240, generator=generator, dtype=torch.float64)
    rows[:, 0] = 6.0  # the largest, so that a row's step stays what it was
    difference = noise * torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    difference[:, 0] = 0
    (codes, step), (others, same_step) = int8_rows(rows), int8_rows(rows + difference)
    assert torch.equal(step, same_step)
    moved = (others.double() - codes.double()) * step[:, None]
    law = float((step[:, None] * difference.abs()).mean())
    flips = float(moved.count_nonzero())
    assert flips > 20
    assert float(moved.square().mean()) == pytest.approx(law, rel=5 / flips**0.5)


def _on_rank(model: SanaTransformer, plan: ParallelPlan, group: Group) -> torch.Tensor:
    return sample(parallelize(model, plan, group), 2)
