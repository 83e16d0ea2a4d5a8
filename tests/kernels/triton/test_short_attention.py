import pytest
import torch

from fewer.kernels.short_attention import reference_short_attention


@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 37, 3, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_gradients_agree_with_the_reference(shape: tuple, dtype: torch.dtype, draw) -> None:
    from fewer.kernels.triton.short_attention import launch_short_attention, launch_short_attention_backward

    query, key, value, grad = (draw(*shape, dtype=dtype) for _ in range(4))
    query[0, 0] = -1  # a query that is nowhere positive
    leaves = [tensor.float().requires_grad_() for tensor in (query, key, value)]
    wanted = reference_short_attention(*leaves, 1e-6)
    slopes = torch.autograd.grad(wanted, leaves, grad.float())
    found = (
        launch_short_attention(query, key, value, 1e-6),
        *launch_short_attention_backward(grad, query, key, value, 1e-6),
    )
    for ours, theirs in zip(found, (wanted, *slopes), strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        error = (ours.float() - theirs).norm() / theirs.norm().clamp(min=1e-6)
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)
