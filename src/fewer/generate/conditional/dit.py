"""DiT (arXiv 2212.09748) with attribute names of facebookresearch/DiT, told its condition by adaLN-zero, by
tokens, or (with neither) by generated weights alone."""

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from fewer.generate.conditional.bricks import (
    FeedForward,
    LabelTable,
    PatchProjection,
    SoftmaxAttention,
    modulate,
    unpatchify,
)
from fewer.generate.conditional.params import ClassConditionalParams
from fewer.generate.transformer.embeddings import sincos_positions, sinusoid


class TimestepEmbedder(nn.Module):
    """256 waves, two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Shaped[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        return self.mlp(sinusoid(timestep.float()).to(self.mlp[0].weight.dtype))


class DiTBlock(nn.Module):
    """Attention and feed-forward; with adaLN six vectors shift, scale and gate them."""

    def __init__(self, params: ClassConditionalParams) -> None:
        super().__init__()
        width = params.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=not params.adaln, eps=1e-6)
        self.attn = SoftmaxAttention(width, params.heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=not params.adaln, eps=1e-6)
        self.mlp = FeedForward(width, params.ffn_ratio, params.depthwise, "tanh")
        self.adaLN_modulation = adaln(width, 6) if params.adaln else None

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], condition: Float[Tensor, "batch dim"], extra: int
    ) -> Float[Tensor, "batch tokens dim"]:
        if self.adaLN_modulation is None:
            tokens = tokens + self.attn(self.norm1(tokens))
            return tokens + self.mlp(self.norm2(tokens), extra)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(condition).chunk(6, 1)
        tokens = tokens + gate_1[:, None] * self.attn(modulate(self.norm1(tokens), shift_1, scale_1))
        return tokens + gate_2[:, None] * self.mlp(modulate(self.norm2(tokens), shift_2, scale_2), extra)


def adaln(width: int, vectors: int) -> nn.Sequential:
    """SiLU and one linear layer, zero at the start (adaLN-zero)."""
    linear = nn.Linear(width, vectors * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


class Head(nn.Module):
    """Norm and projection back to patches."""

    def __init__(self, params: ClassConditionalParams) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(params.width, elementwise_affine=not params.adaln, eps=1e-6)
        self.linear = nn.Linear(params.width, params.patch**2 * params.out_channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = adaln(params.width, 2) if params.adaln else None

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], condition: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch tokens patch_dim"]:
        tokens = self.norm_final(tokens)
        if self.adaLN_modulation is not None:
            shift, scale = self.adaLN_modulation(condition).chunk(2, 1)
            tokens = modulate(tokens, shift, scale)
        return self.linear(tokens)


class DiT(nn.Module):
    """Velocity (or noise, for published weights) of noisy latents, given a time and a class."""

    def __init__(self, params: ClassConditionalParams) -> None:
        super().__init__()
        self.params = params.check()
        width, side = params.width, params.size // params.patch
        self.x_embedder = PatchProjection(params.channels, width, params.patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelTable(params.classes, width)
        self.register_buffer("pos_embed", sincos_positions(side, side, width, side, 1.0)[None])
        self.blocks = nn.ModuleList(DiTBlock(params) for _ in range(params.depth))
        self.final_layer = Head(params)

    def forward(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        labels: Int64[Tensor, " batch"],
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """`timestep` on a scale of 0 to 1000; label `classes` stands for no class."""
        time, label = self.t_embedder(timestep), self.y_embedder(labels)
        condition = time + label
        tokens = self.x_embedder(latents) + self.pos_embed
        extra = 2 if self.params.tokens else 0
        if extra:
            tokens = torch.cat([label[:, None], time[:, None], tokens], 1)
        for block in self.blocks:
            tokens = block(tokens, condition, extra)
        return unpatchify(self.final_layer(tokens[:, extra:], condition), self.params.patch)

    def condition(
        self, timestep: Shaped[Tensor, " batch"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """The embedding from which weights are generated: time plus class."""
        return self.t_embedder(timestep) + self.y_embedder(labels)
