import torch
from torch.nn.functional import rms_norm

from fewer.kernels.joint_attention import (
    inverse_roots,
    joint_attention,
    joint_attention_backward,
    norms_backward_,
)
from fewer.kernels.short_attention import short_attention

HEADS = 3


def formula(joint: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
    q, k, v = joint.chunk(3, dim=2)
    parts = (rms_norm(q, q.shape[2:], weights[0], 1e-5), rms_norm(k, k.shape[2:], weights[1], 1e-5), v)
    return short_attention(*(part.unflatten(2, (HEADS, -1)) for part in parts)).flatten(2)


def test_equals_norms_and_attention_one_after_another(draw) -> None:
    joint = draw(2, 5, 3 * HEADS * 4).double().requires_grad_()
    weights = tuple(draw(HEADS * 4).double().requires_grad_() for _ in range(2))
    wanted, above = formula(joint, weights), draw(2, 5, HEADS * 4).double()
    gradients = torch.autograd.grad(wanted, (joint, *weights), above)
    with torch.no_grad():
        rows = joint.flatten(0, 1)
        inverse = inverse_roots(rows, HEADS * 4, 2)
        found, states = joint_attention(joint, inverse, weights, HEADS)
        of_joint = joint_attention_backward(above, joint, inverse, weights, states)
        of_weights, sums = norms_backward_(of_joint.flatten(0, 1), rows, inverse, weights)
    assert torch.allclose(found, wanted)
    assert torch.allclose(of_joint, gradients[0])
    assert torch.allclose(of_weights, torch.stack(gradients[1:]))
    assert torch.allclose(sums.flatten(), of_joint.sum((0, 1))[: 2 * HEADS * 4])


def test_without_norms_it_is_plain_attention(draw) -> None:
    joint = draw(1, 3, 3 * HEADS * 2)
    found, _ = joint_attention(joint, None, (), HEADS)
    parts = [part.unflatten(2, (HEADS, -1)) for part in joint.chunk(3, dim=2)]
    assert torch.allclose(found, short_attention(*parts).flatten(2))
