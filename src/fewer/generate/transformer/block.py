"""One block of the linear diffusion transformer."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fewer.generate.transformer.attention import CrossAttention, KeysValues, LinearAttention
from fewer.generate.transformer.feed_forward import MixFFN
from fewer.generate.transformer.params import SanaParams


class SanaBlock(nn.Module):
    """Linear attention, cross-attention, Mix-FFN; the first and the last modulated by the time."""

    def __init__(self, params: SanaParams) -> None:
        super().__init__()
        width = params.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=params.norm_eps)
        self.attn1 = LinearAttention(
            width, params.heads, params.head_dim, qk_norm=params.qk_norm, bias=params.attention_bias
        )
        self.attn2 = CrossAttention(width, params.cross_heads, params.cross_head_dim, qk_norm=params.qk_norm)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=params.norm_eps)
        self.ff = MixFFN(width, params.mlp_ratio)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        modulation: Float[Tensor, "batch 6 dim"],
        text: KeysValues,
        text_mask: Bool[Tensor, "batch length"] | None,
        grid: tuple[int, int],
    ) -> Float[Tensor, "batch tokens dim"]:
        """`modulation` is the shared part; the table is this block's own. No norm before the text."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (self.scale_shift_table + modulation).chunk(6, 1)
        tokens = tokens + gate_1 * self.attn1(self.norm1(tokens) * (1 + scale_1) + shift_1)
        tokens = tokens + self.attn2(tokens, text, text_mask)
        return tokens + gate_2 * self.ff(self.norm2(tokens) * (1 + scale_2) + shift_2, grid)
