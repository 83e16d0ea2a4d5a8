import torch
from torch.nn.functional import linear

from fewer.generate.transformer.block import SanaBlock
from fewer.generate.transformer.block_passes import Shape, backward_block, forward_block
from fewer.generate.transformer.block_tensors import rounded, tensors_of
from fewer.generate.transformer.params import SanaParams


def test_one_block_both_ways_is_the_module_and_its_gradients() -> None:
    """Without the first norm and the last gated sum, which belong to two blocks each."""
    torch.manual_seed(0)
    params = SanaParams(heads=2, head_dim=16, depth=1, cross_heads=1, cross_head_dim=32, qk_norm=True)
    block = SanaBlock(params).double()
    total, read, above = (torch.randn(2, 6, 32).double().requires_grad_() for _ in range(3))
    keys, values = (torch.randn(2, 3, 32).double().requires_grad_() for _ in range(2))
    visible = torch.tensor([[True, False, True], [True] * 3])
    vectors = torch.randn(6, 2, 32).double()  # of (shift, scale, gate), twice

    # The module's own parts, with `read` instead of the first norm.
    middle = total + vectors[2][:, None] * block.attn1(read)
    query = block.attn2.norm_q(linear(middle, block.attn2.to_q.weight, block.attn2.to_q.bias))
    attended = torch.nn.functional.scaled_dot_product_attention(
        *(part[:, None] for part in (query, keys, values)), attn_mask=visible[:, None, None]
    )
    last = middle + block.attn2.to_out(attended[:, 0])
    update = block.ff(block.norm2(last) * (1 + vectors[4][:, None]) + vectors[3][:, None], (2, 3))
    tensors = tensors_of(block)
    moving = [tensor for tensor in tensors.listed() if tensor is not None]
    sources = (total, read, keys, values, *moving)
    wanted = torch.autograd.grad((last * above).sum() + (update * above).sum(), sources)

    ours = rounded(tensors.listed(), torch.float64)[0]
    shape = Shape((2, 3), 2, 1, params.norm_eps)
    with torch.no_grad():
        kept = forward_block(ours, shape, total, read, vectors, keys, values, visible)
        found = torch.zeros_like(keys), torch.zeros_like(values)
        texts = (keys, values, *found)
        of_vectors = torch.zeros_like(vectors)
        g, g_read, rest = backward_block(ours, kept, shape, above, above, vectors, texts, visible, of_vectors)
    assert torch.allclose(kept.last, last) and torch.allclose(kept.update, update)
    got = (g, g_read, *found, *(tensor for tensor in rest.listed() if tensor is not None))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)
    assert of_vectors[2:5].any(dim=2).all() and not of_vectors[[0, 1, 5]].any()
