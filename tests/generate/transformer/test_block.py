"""One block: what its gates close, and what stays open."""

import torch

from fewer.generate.transformer.block import SanaBlock
from fewer.generate.transformer.params import SanaParams

PARAMS = SanaParams(heads=2, head_dim=8, depth=1, cross_heads=2, cross_head_dim=8)


def test_closed_gates_leave_only_the_text():
    block, tokens, text = SanaBlock(PARAMS), torch.randn(2, 6, 16), torch.randn(2, 3, 16)
    block.scale_shift_table.data.zero_()
    modulation = torch.randn(2, 6, 16)
    modulation[:, [2, 5]] = 0  # gates of attention and feed-forward
    prepared = block.attn2.prepare(text)
    result = block(tokens, modulation, prepared, None, (2, 3))
    torch.testing.assert_close(result, tokens + block.attn2(tokens, prepared, None))


def test_table_and_shared_modulation_add_up():
    block, tokens, text = SanaBlock(PARAMS), torch.randn(1, 6, 16), torch.randn(1, 3, 16)
    prepared, moved = block.attn2.prepare(text), torch.randn(6, 16)
    with_modulation = block(tokens, moved[None], prepared, None, (3, 2))
    block.scale_shift_table.data += moved
    in_table = block(tokens, torch.zeros(1, 6, 16), prepared, None, (3, 2))
    torch.testing.assert_close(with_modulation, in_table)
