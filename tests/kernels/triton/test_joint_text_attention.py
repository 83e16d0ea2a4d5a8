import pytest
import torch

from fewer.kernels.joint_text_attention import (
    reference_joint_text_attention,
    reference_joint_text_attention_backward,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "normed"), [(1, True), (21, False)])
def test_both_passes_agree_with_the_reference(dtype: torch.dtype, tokens: int, normed: bool, draw) -> None:
    from fewer.kernels.triton.joint_text_attention import (
        launch_joint_text_attention,
        launch_joint_text_attention_backward,
    )

    heads, tile = 2, (16, 1, 1, "tf32")
    query, grad = draw(2, tokens, heads * 16, dtype=dtype), draw(2, tokens, heads * 16, dtype=dtype)
    rows = draw(2, 5, 3, heads * 16, dtype=dtype)
    keys, values = rows[:, :, 0], rows[:, :, 2]
    norm = (draw(2 * tokens).abs(), draw(heads * 16, dtype=dtype)) if normed else (None, None)
    visible = torch.tensor([[True] * 3 + [False] * 2, [True] * 5], device=query.device)
    arguments = (query, *norm, keys, values, visible, heads)
    found = torch.zeros_like(rows)
    to = found[:, :, 0], found[:, :, 2]
    ours = [
        launch_joint_text_attention(*arguments, tile),
        launch_joint_text_attention_backward(grad, *arguments, to, tile),
        *to,
    ]
    wanted = [
        reference_joint_text_attention(*arguments),
        *reference_joint_text_attention_backward(grad, *arguments),
    ]
    for a, b in zip(ours, wanted, strict=True):
        error = (a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-6)
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)
    assert not found[:, :, 1].any()
