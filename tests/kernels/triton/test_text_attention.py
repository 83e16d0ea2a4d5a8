import pytest
import torch

from fewer.kernels.cross_attention import reference_cross_attention
from fewer.kernels.text_attention import reference_text_attention_backward


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 16), (2, 37, 5, 3, 32), (1, 70, 33, 2, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_gradients_agree_with_the_reference(shape: tuple, dtype: torch.dtype, draw) -> None:
    from fewer.kernels.triton.text_attention import launch_text_attention, launch_text_attention_backward

    batch, tokens, length, heads, dim = shape
    query, grad = draw(batch, tokens, heads, dim, dtype=dtype), draw(batch, tokens, heads, dim, dtype=dtype)
    keys, values = (draw(batch, length, heads, dim, dtype=dtype) for _ in range(2))
    visible = torch.arange(length, device=query.device)[None].expand(batch, -1) < max(1, length - 2)
    apart = (query.float(), keys.float(), values.float())
    wanted = (
        reference_cross_attention(apart[0], *(part.transpose(1, 2) for part in apart[1:]), visible),
        *reference_text_attention_backward(grad.float(), *apart, visible),
    )
    found = (
        launch_text_attention(query, keys, values, visible),
        *launch_text_attention_backward(grad, query, keys, values, visible),
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        error = (ours.float() - theirs).norm() / theirs.norm().clamp(min=1e-2)
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)
