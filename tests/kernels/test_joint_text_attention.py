import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from fewer.kernels.joint_attention import inverse_roots, norms_backward_
from fewer.kernels.joint_text_attention import joint_text_attention, joint_text_attention_backward

HEADS = 2


def test_equals_norm_and_torchs_attention_with_gradients(draw) -> None:
    query = draw(2, 5, 8).double().requires_grad_()
    keys, values = (
        draw(2, 3, 4, 8).double()[:, :, 1].requires_grad_() for _ in range(2)
    )  # parts of longer rows
    weight = draw(8).double().requires_grad_()
    visible = torch.tensor([[True, False, True], [True, True, True]], device=query.device)
    parts = [
        t.unflatten(2, (HEADS, -1)).transpose(1, 2)
        for t in (rms_norm(query, (8,), weight, 1e-5), keys, values)
    ]
    wanted = scaled_dot_product_attention(*parts, attn_mask=visible[:, None, None]).transpose(1, 2).flatten(2)
    above = draw(2, 5, 8).double()
    gradients = torch.autograd.grad(wanted, (query, keys, values, weight), above)
    with torch.no_grad():
        inverse = inverse_roots(query.flatten(0, 1), 8, 1)
        text = (inverse[:, 0], weight, keys, values, visible, HEADS)
        found = torch.zeros_like(keys), torch.zeros_like(values)
        of_query = joint_text_attention_backward(above, query, *text, found)
        of_weight, _ = norms_backward_(of_query.flatten(0, 1), query.flatten(0, 1), inverse, (weight,))
        assert torch.allclose(joint_text_attention(query, *text), wanted)
    for ours, theirs in zip((of_query, *found, of_weight[0]), gradients, strict=True):
        assert torch.allclose(ours, theirs)
