import pytest
import torch
from torch.nn.functional import layer_norm

from fewer.kernels.modulation import gated_norm, gated_norm_backward


@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_equals_autograd_of_the_formula(updated: bool, gated: bool, normed: bool, draw) -> None:
    x, u = (draw(2, 5, 7).double().requires_grad_() for _ in range(2))
    gate, shift, scale = (draw(2, 7).double().requires_grad_() for _ in range(3))
    gated = gated and updated
    total = x + u * gate[:, None] if gated else x + u if updated else x
    read = layer_norm(total, (7,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None] if normed else total
    arguments = (u if updated else None, gate if gated else None)
    with torch.no_grad():
        found = gated_norm(x, *arguments, *((shift, scale) if normed else (None, None)))
    assert torch.allclose(found[0], total) and torch.allclose(found[1], read)

    above, upper = draw(2, 5, 7).double(), draw(2, 5, 7).double() if normed else None
    loss = (total * above).sum() + (0 if upper is None else (read * upper).sum())
    wanted = torch.autograd.grad(loss, (x, u, gate, shift, scale), allow_unused=True)
    with torch.no_grad():
        of_x, of_u, sums = gated_norm_backward(above, upper, total, *arguments, scale if normed else None)
    assert torch.allclose(of_x, wanted[0])
    if updated:
        assert torch.allclose(of_u, wanted[1]) and torch.allclose(sums[3], wanted[1].sum(1))
    if gated:
        assert torch.allclose(sums[2], wanted[2])
    if normed:
        assert torch.allclose(sums[0], wanted[3]) and torch.allclose(sums[1], wanted[4])
