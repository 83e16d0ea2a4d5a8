import pytest
import torch

from fewer.kernels.joint_attention import (
    inverse_roots,
    reference_joint_attention,
    reference_joint_attention_backward,
    reference_norms_backward_,
)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "normed"), [(1, True), (21, True), (5, False)])
def test_both_passes_agree_with_the_reference(dtype: torch.dtype, tokens: int, normed: bool, draw) -> None:
    from fewer.kernels.triton.joint_attention import launch_joint_attention, launch_joint_attention_backward

    heads, limit, tile = 2, 1e-5 if dtype == torch.float32 else 2e-2, (16, 1, 1, "tf32")
    joint, grad = draw(2, tokens, 3 * heads * 16, dtype=dtype), draw(2, tokens, heads * 16, dtype=dtype)
    weights = (draw(heads * 16, dtype=dtype), draw(heads * 16, dtype=dtype)) if normed else ()
    inverse = inverse_roots(joint.flatten(0, 1).cpu(), heads * 16, 2).to(joint.device) if normed else None
    found, states = launch_joint_attention(joint, inverse, weights or None, heads, 1e-15, tile)
    assert apart(found, reference_joint_attention(joint, inverse, weights, heads, 1e-15)) < limit
    ours = launch_joint_attention_backward(grad, joint, inverse, weights or None, states, 1e-15, tile)
    wanted = reference_joint_attention_backward(grad, joint, inverse, weights, heads, 1e-15)
    assert apart(ours, wanted) < limit


@pytest.mark.parametrize(("rows", "parts"), [(1, 1), (37, 2)])
def test_norms_and_their_gradients(rows: int, parts: int, draw) -> None:
    from fewer.kernels.triton.joint_attention import launch_inverse, launch_norm_backward_

    joint, grad = draw(rows, 3 * 12), draw(rows, 3 * 12)
    weights = tuple(draw(12) for _ in range(parts))
    inverse = launch_inverse(joint, 12, parts, 1e-5)
    assert torch.allclose(inverse.cpu(), inverse_roots(joint.cpu(), 12, parts))
    ours, wanted = grad.clone(), grad.clone()
    found = launch_norm_backward_(ours, joint, inverse, weights, (4, 2, 1))
    for a, b in zip(found, reference_norms_backward_(wanted, joint, inverse, weights), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(ours, wanted, atol=1e-5)  # what is no query or key stays as it was
