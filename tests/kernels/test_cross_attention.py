import torch

from fewer.kernels.cross_attention import cross_attention


def test_equals_the_written_out_softmax_and_hidden_keys_do_not_count(draw) -> None:
    query, keys, values = draw(2, 5, 3, 8), draw(2, 3, 7, 8), draw(2, 3, 7, 8)
    visible = torch.tensor([[True] * 4 + [False] * 3, [True] * 7], device=query.device)
    scores = torch.einsum("bnhd,bhld->bhnl", query, keys) / 8**0.5
    weights = scores.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1)
    expected = torch.einsum("bhnl,bhld->bnhd", weights, values)
    assert torch.allclose(cross_attention(query, keys, values, visible), expected, atol=1e-5)
    first = cross_attention(query[:1], keys[:1, :, :4], values[:1, :, :4])
    assert torch.allclose(first, expected[:1], atol=1e-5)


def test_operator_is_registered_properly(draw) -> None:
    query, keys, values = draw(1, 5, 2, 8), draw(1, 2, 3, 8), draw(1, 2, 3, 8)
    visible = torch.tensor([[True, True, False]], device=query.device)
    for mask in (None, visible):
        torch.library.opcheck(torch.ops.fewer.cross_attention, (query, keys, values, mask))
