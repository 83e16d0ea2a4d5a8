import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fewer.core.errors import ConfigError
from fewer.kernels.text_attention import text_attention


def test_equals_torch_and_its_gradients(draw) -> None:
    inputs = [draw(2, 5, 3, 8), draw(2, 7, 3, 8), draw(2, 7, 3, 8)]
    inputs = [tensor.double().requires_grad_() for tensor in inputs]
    visible = torch.tensor([[True] * 4 + [False] * 3, [True] * 7], device=inputs[0].device)
    apart = [tensor.transpose(1, 2) for tensor in inputs]
    wanted = scaled_dot_product_attention(*apart, attn_mask=visible[:, None, None]).transpose(1, 2)
    found = text_attention(*inputs, visible)
    assert torch.allclose(found, wanted)
    above = draw(2, 5, 3, 8).double()
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, above), torch.autograd.grad(wanted, inputs, above), strict=True
    ):
        assert torch.allclose(ours, theirs)


def test_operator_is_registered_properly(draw) -> None:
    inputs = draw(1, 3, 2, 4), draw(1, 2, 2, 4), draw(1, 2, 2, 4)
    visible = torch.tensor([[True, False]], device=inputs[0].device)
    torch.library.opcheck(torch.ops.fewer.text_attention, (*inputs, visible))


def test_a_long_text_is_refused_by_its_length(draw) -> None:
    with pytest.raises(ConfigError, match="65 keys"):
        text_attention(
            draw(1, 1, 1, 4), draw(1, 65, 1, 4), draw(1, 65, 1, 4), torch.ones(1, 65, dtype=torch.bool)
        )
