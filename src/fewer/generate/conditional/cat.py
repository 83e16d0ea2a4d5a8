"""CaT: EfficientViT's blocks (linear attention, gated convolutional feed-forward) for class-conditional
generation. With condition-aware weights this is the network of arXiv 2404.01143; without, its static twin."""

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from fewer.generate.conditional.bricks import LabelTable, PatchProjection, modulate, unpatchify
from fewer.generate.conditional.dit import Head, TimestepEmbedder, adaln
from fewer.generate.conditional.params import ClassConditionalParams
from fewer.generate.transformer.attention import LinearAttention
from fewer.generate.transformer.embeddings import sincos_positions
from fewer.generate.transformer.feed_forward import MixFFN


class CaTBlock(nn.Module):
    """Linear attention over all tokens, then Mix-FFN over the image alone."""

    def __init__(self, params: ClassConditionalParams) -> None:
        super().__init__()
        width = params.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=not params.adaln, eps=1e-6)
        self.attn = LinearAttention(width, params.heads, width // params.heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=not params.adaln, eps=1e-6)
        self.ffn = MixFFN(width, params.ffn_ratio)
        self.adaLN_modulation = adaln(width, 6) if params.adaln else None

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        condition: Float[Tensor, "batch dim"],
        extra: int,
        grid: tuple[int, int],
    ) -> Float[Tensor, "batch tokens dim"]:
        """The first `extra` tokens (class, time) have no place on the grid and skip the feed-forward."""
        if self.adaLN_modulation is None:
            tokens = tokens + self.attn(self.norm1(tokens))
            image = tokens[:, extra:] + self.ffn(self.norm2(tokens[:, extra:]), grid)
            return torch.cat([tokens[:, :extra], image], 1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(condition).chunk(6, 1)
        tokens = tokens + gate_1[:, None] * self.attn(modulate(self.norm1(tokens), shift_1, scale_1))
        image = modulate(self.norm2(tokens[:, extra:]), shift_2, scale_2)
        image = tokens[:, extra:] + gate_2[:, None] * self.ffn(image, grid)
        return torch.cat([tokens[:, :extra], image], 1)


class CaT(nn.Module):
    """Velocity of noisy latents, given a time and a class."""

    def __init__(self, params: ClassConditionalParams) -> None:
        super().__init__()
        self.params = params.check()
        width, side = params.width, params.size // params.patch
        self.patch_embed = PatchProjection(params.channels, width, params.patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelTable(params.classes, width)
        self.register_buffer(
            "pos_embed", sincos_positions(side, side, width, side, 1.0)[None], persistent=False
        )
        self.blocks = nn.ModuleList(CaTBlock(params) for _ in range(params.depth))
        self.final_layer = Head(params)

    def forward(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        labels: Int64[Tensor, " batch"],
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """`timestep` on a scale of 0 to 1000; label `classes` stands for no class."""
        time, label = self.t_embedder(timestep), self.y_embedder(labels)
        tokens = self.patch_embed(latents) + self.pos_embed
        extra = 2 if self.params.tokens else 0
        if extra:
            tokens = torch.cat([label[:, None], time[:, None], tokens], 1)
        side = self.params.size // self.params.patch
        for block in self.blocks:
            tokens = block(tokens, time + label, extra, (side, side))
        return unpatchify(self.final_layer(tokens[:, extra:], time + label), self.params.patch)

    def condition(
        self, timestep: Shaped[Tensor, " batch"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """The embedding from which weights are generated: time plus class."""
        return self.t_embedder(timestep) + self.y_embedder(labels)
