"""Linear attention against its explicit quadratic form, and its behaviour at the edges."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fewer.generate.transformer.attention import CrossAttention, LinearAttention, relu_linear_attention


def quadratic(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = torch.relu(query).double() @ torch.relu(key).double().transpose(-1, -2)
    return weights / weights.sum(-1, keepdim=True) @ value.double()


@pytest.mark.parametrize("tokens", [1, 5, 123])
@pytest.mark.parametrize("head_dim", [8, 32])
def test_equals_the_quadratic_form(tokens, head_dim):
    query, key, value = torch.randn(3, 2, 3, tokens, head_dim).unbind()
    query[..., 0] = key[..., 0] = 0.5  # no row without a positive entry
    result = relu_linear_attention(query, key, value)
    torch.testing.assert_close(result.double(), quadratic(query, key, value), rtol=1e-5, atol=1e-5)


def test_is_an_average_of_the_values():
    query, key = torch.rand(2, 1, 2, 17, 8).unbind()
    ones = relu_linear_attention(query, key, torch.ones(1, 2, 17, 3))
    torch.testing.assert_close(ones, torch.ones_like(ones))


def test_permuting_tokens_permutes_the_result():
    layer, tokens, order = LinearAttention(32, 4, 8, qk_norm=True), torch.randn(2, 19, 32), torch.randperm(19)
    torch.testing.assert_close(layer(tokens[:, order]), layer(tokens)[:, order], rtol=1e-5, atol=1e-6)


def test_queries_that_are_nowhere_positive_give_zeros():
    query = torch.randn(1, 2, 9, 8)
    query[:, :, 4] = -1.0
    result = relu_linear_attention(query, torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8))
    assert torch.equal(result[:, :, 4], torch.zeros(1, 2, 8))
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_values_and_many_tokens_stay_finite(dtype):
    query, key, value = (100 * torch.randn(3, 1, 1, 16_384, 32)).to(dtype).unbind()
    assert torch.isfinite(relu_linear_attention(query, key, value)).all()


def test_fp16_output_is_clamped():
    layer = LinearAttention(8, 1, 8).half()
    layer.to_out[0].weight.data.fill_(60000.0)
    result = layer(torch.full((1, 4, 8), 100.0, dtype=torch.float16))
    assert torch.isfinite(result).all()


def test_operations_grow_linearly():
    """Counted: seconds on a busy machine prove nothing; benchmarks/linear_attention.py takes those."""

    def operations(tokens: int) -> int:
        with FlopCounterMode(display=False) as counter:
            relu_linear_attention(*torch.rand(3, 1, 2, tokens, 32).unbind())
        return counter.get_total_flops()

    assert operations(2048) == 2 * operations(1024) == 2 * 2 * 1024 * 2 * 32 * 33 * 2


def test_cross_attention_sees_only_what_the_mask_shows():
    layer, tokens, text = CrossAttention(16, 2, 8), torch.randn(1, 5, 16), torch.randn(1, 4, 16)
    mask = torch.tensor([[True, False, True, False]])
    masked = layer(tokens, layer.prepare(text), mask)
    dropped = layer(tokens, layer.prepare(text[:, [0, 2]]), None)
    torch.testing.assert_close(masked, dropped, rtol=1e-5, atol=1e-6)
