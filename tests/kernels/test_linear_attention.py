import pytest
import torch

from fewer.kernels.linear_attention import (
    linear_attention,
    linear_attention_apply,
    linear_attention_state,
)

SHAPES = [(1, 1, 1, 8), (2, 5, 3, 32), (1, 123, 2, 16)]


def quadratic(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = torch.einsum("bnhd,bmhd->bhnm", query.relu(), key.relu())
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-15)
    return torch.einsum("bhnm,bmhd->bnhd", weights, value)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_explicit_quadratic_form(shape: tuple, dtype: torch.dtype, draw) -> None:
    q, k, v = (draw(*shape, dtype=dtype) for _ in range(3))
    assert torch.allclose(linear_attention(q, k, v), quadratic(q, k, v), atol=1e-5)


def test_states_of_parts_add_up_to_the_state_of_the_whole(draw) -> None:
    k, v = draw(2, 21, 3, 8), draw(2, 21, 3, 8)
    parts = linear_attention_state(k[:, :8], v[:, :8]) + linear_attention_state(k[:, 8:], v[:, 8:])
    assert torch.allclose(parts, linear_attention_state(k, v), atol=1e-5)


def test_order_of_keys_does_not_matter_and_zero_queries_give_zeros(draw) -> None:
    q, k, v = draw(1, 7, 2, 8), draw(1, 9, 2, 8), draw(1, 9, 2, 8)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1)).to(k.device)
    assert torch.allclose(linear_attention(q, k, v), linear_attention(q, k[:, order], v[:, order]), atol=1e-5)
    assert torch.equal(linear_attention(torch.zeros_like(q), k, v), torch.zeros_like(q))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exact_state_keeps_no_trace_of_the_order_of_its_sums(draw, dtype: torch.dtype) -> None:
    # On a GPU blocks of 64 tokens are what is ordered; here parts begin with a block.
    q, k, v = (draw(2, 448, 3, 32, dtype=dtype) for _ in range(3))
    whole = linear_attention(q, k, v, exact=True)
    parts = [
        linear_attention_state(k[:, a:b], v[:, a:b], exact=True) for a, b in ((0, 64), (64, 256), (256, 448))
    ]
    for order in ((0, 1, 2), (2, 0, 1)):
        total = sum(parts[place] for place in order)
        assert isinstance(total, torch.Tensor) and total.dtype == torch.float64
        assert torch.equal(linear_attention_apply(q, total), whole)
    assert torch.allclose(whole.float(), linear_attention(q, k, v).float(), atol=1e-2)


def test_large_half_precision_inputs_stay_finite(draw) -> None:
    q, k, v = (draw(1, 16_384, 1, 32, dtype=torch.float16, scale=100.0) for _ in range(3))
    out = linear_attention(q, k, v)
    assert out.dtype == torch.float16 and torch.isfinite(out).all()


def test_gradients_are_those_of_the_formula(draw) -> None:
    inputs = [draw(1, 5, 2, 4, dtype=torch.float64).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: linear_attention(q, k, v, 1e-8), inputs)


def test_operators_are_registered_properly(draw) -> None:
    q, k, v = (draw(1, 5, 2, 8) for _ in range(3))
    torch.library.opcheck(torch.ops.fewer.linear_attention_state, (k, v))
    torch.library.opcheck(torch.ops.fewer.linear_attention, (q, k, v, 1e-15))
    state = linear_attention_state(k, v)
    torch.library.opcheck(torch.ops.fewer.linear_attention_apply, (q, state, 1e-15))
    assert linear_attention_apply(q, state).shape == q.shape
