"""How coarse rows may be: what matters more is finer, what fits a byte fits, the budget is kept."""

import zlib

import pytest
import torch

from fewer.quantize.shares import COARSEST, LARGEST, Rows, huffman_bits, slope_for, whole_numbers


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_rows_that_matter_more_have_finer_steps() -> None:
    weight = Rows(normal(3, 500) / 2, torch.tensor([1.0, 4.0, 16.0]))
    steps = weight.steps(0.1)
    assert (steps[:-1] > steps[1:]).all()
    even = 0.9 * weight.cost + 0.1 * weight.cost.mean()
    assert torch.allclose(steps, 0.1 / even.sqrt(), rtol=2**-8)
    assert torch.equal(steps, steps.bfloat16().float())


@pytest.mark.parametrize("slope", [1e-6, 1e-2, 1.0, 1e6])
def test_no_row_overflows_a_byte_and_none_is_coarser_than_a_bit_can_say(slope: float) -> None:
    rows = normal(40, 123) * torch.logspace(-4, 4, 40)[:, None]
    weight = Rows(rows, torch.logspace(3, -3, 40))
    steps = weight.steps(slope)
    assert ((rows / steps[:, None]).round().abs() <= LARGEST).all()
    assert (steps <= COARSEST * rows.square().mean(dim=1).sqrt() * (1 + 2**-7)).all()


def test_all_zero_rows_and_costs_are_allowed() -> None:
    weight = Rows(torch.zeros(4, 5), torch.zeros(4))
    assert (weight.steps(1.0) > 0).all() and not weight.too_fine(1.0)
    assert not whole_numbers(weight.rows, weight.steps(1.0)[:, None]).any()


@pytest.mark.parametrize("deviation", [0.1, 0.8, 4.0, 30.0])
def test_the_estimate_is_what_zlib_takes(deviation: float) -> None:
    codes = whole_numbers(deviation * normal(300, 400), torch.ones(1))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    real = 8 * len(packer.compress(codes.numpy().tobytes()) + packer.flush())
    assert huffman_bits(codes) == pytest.approx(real, rel=0.03)


def test_the_budget_is_kept_and_used() -> None:
    weights = {str(n): Rows(normal(64, 128, n), torch.full((64,), 4.0**-n)) for n in range(4)}
    for bits in (3.0, 4.1, 5.5):
        budget = bits * 4 * 64 * 128
        slope = slope_for(weights, budget)
        assert 0.97 * budget < sum(weight.bits(slope) for weight in weights.values()) <= budget


def test_a_weight_far_above_a_byte_stays_in_16_bits() -> None:
    weight = Rows(normal(64, 64), torch.full((64,), 1e6))
    assert weight.too_fine(1e-2) and weight.bits(1e-2) == 16 * 64 * 64
    assert not weight.too_fine(1e2)
