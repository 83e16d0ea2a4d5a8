import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.recommend.baselines.transformer import AttentionBlock, TransformerShape, allowed_pairs


def test_who_may_look_at_whom() -> None:
    items = torch.tensor([[0, 4, 5]])
    assert allowed_pairs(items, causal=True)[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert allowed_pairs(items, causal=False)[0, 0].int().tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1]]


def test_a_block_equals_torch_s_own_layer() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(TransformerShape(items=5, dim=8, heads=2, hidden=12, dropout=0.0)).eval()
    layer = torch.nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": block.queries_keys_values.weight,
            "self_attn.in_proj_bias": block.queries_keys_values.bias,
            "self_attn.out_proj.weight": block.output.weight,
            "self_attn.out_proj.bias": block.output.bias,
            "linear1.weight": block.widen.weight,
            "linear1.bias": block.widen.bias,
            "linear2.weight": block.narrow.weight,
            "linear2.bias": block.narrow.bias,
            "norm1.weight": block.attention_norm.weight,
            "norm1.bias": block.attention_norm.bias,
            "norm2.weight": block.feed_norm.weight,
            "norm2.bias": block.feed_norm.bias,
        }
    )
    rows = torch.randn(3, 5, 8)
    allowed = allowed_pairs(torch.ones(3, 5, dtype=torch.long), causal=True)
    with torch.no_grad():
        wanted = layer(rows, src_mask=~allowed[0, 0])
        torch.testing.assert_close(block(rows, allowed), wanted, atol=1e-5, rtol=1e-5)
        for mask in (allowed, None):
            last = block(rows, mask, last_only=True)
            torch.testing.assert_close(last, wanted[:, -1:], atol=1e-5, rtol=1e-5)


def test_channels_are_shared_out_evenly_among_heads() -> None:
    with pytest.raises(ConfigError, match="dim 7 must be a multiple of the 2 heads"):
        AttentionBlock(TransformerShape(items=3, dim=7))
