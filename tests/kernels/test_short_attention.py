import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.kernels.linear_attention import linear_attention
from fewer.kernels.short_attention import reference_short_attention, short_attention


@pytest.mark.parametrize("tokens", [1, 5, 37])
def test_equals_linear_attention(tokens: int, draw) -> None:
    query, key, value = (draw(2, tokens, 3, 16) for _ in range(3))
    assert torch.allclose(short_attention(query, key, value), linear_attention(query, key, value), atol=1e-5)


def test_gradients_are_those_of_the_plain_form(draw) -> None:
    inputs = [draw(2, 9, 2, 16).double().requires_grad_() for _ in range(3)]
    grad = draw(2, 9, 2, 16).double()
    ours = torch.autograd.grad(short_attention(*inputs, eps=1e-9), inputs, grad)
    theirs = torch.autograd.grad(reference_short_attention(*inputs, 1e-9), inputs, grad)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-8)


def test_operator_is_registered_properly(draw) -> None:
    torch.library.opcheck(torch.ops.fewer.short_attention, (*(draw(1, 3, 2, 16) for _ in range(3)), 1e-6))


def test_many_tokens_are_refused(draw) -> None:
    with pytest.raises(ConfigError, match="257 tokens"):
        short_attention(*(draw(1, 257, 1, 16) for _ in range(3)))
