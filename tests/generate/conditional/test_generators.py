import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.conditional.generators import KernelBank, WeightGenerator


@pytest.mark.parametrize("rank", [None, 1, 5])
def test_starts_at_zero_yet_learns(rank: int | None) -> None:
    generator = WeightGenerator(7, (3, 2, 1, 1), rank)
    condition = torch.randn(4, 7)
    weights = generator(condition)
    assert weights.shape == (4, 3, 2, 1, 1) and not weights.any()
    weights.sum().backward()
    assert generator.b.weight.grad.abs().max() > 0


def test_is_affine_in_the_bottleneck() -> None:
    generator = WeightGenerator(3, (2, 2), 4, zero_init=False)
    condition = torch.randn(5, 3)
    inner = torch.nn.functional.silu(condition @ generator.a.weight.T + generator.a.bias)
    wanted = inner @ generator.b.weight.T + generator.b.bias
    assert torch.allclose(generator(condition).flatten(1), wanted, atol=1e-6)


def test_counts_its_products() -> None:
    assert WeightGenerator(7, (3, 2), 5).macs() == 7 * 5 + 5 * 6
    assert WeightGenerator(7, (3, 2), None).macs() == 7 * 6
    assert KernelBank(7, (3, 2), 4).macs() == 7 * 4 + 4 * 6


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="rank was -1"):
        WeightGenerator(3, (2,), -1)
    with pytest.raises(ConfigError, match="2 or more"):
        KernelBank(3, (2, 2), 1)
