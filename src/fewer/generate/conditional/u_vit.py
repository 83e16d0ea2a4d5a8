"""U-ViT (arXiv 2209.12152): everything is a token, and late blocks see early ones. Names of baofff/U-ViT."""

import math

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from fewer.generate.conditional.bricks import (
    FeedForward,
    PatchProjection,
    SoftmaxAttention,
    check_labels,
    unpatchify,
)
from fewer.generate.conditional.params import ClassConditionalParams


class UViTBlock(nn.Module):
    """Attention and feed-forward; blocks of the second half first join what the first half kept."""

    def __init__(self, params: ClassConditionalParams, skip: bool) -> None:
        super().__init__()
        width = params.width
        self.norm1 = nn.LayerNorm(width)
        self.attn = SoftmaxAttention(width, params.heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, params.ffn_ratio, params.depthwise, "none")
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        kept: Float[Tensor, "batch tokens dim"] | None = None,
        extra: int = 2,
    ) -> Float[Tensor, "batch tokens dim"]:
        if self.skip_linear is not None and kept is not None:
            tokens = self.skip_linear(torch.cat([tokens, kept], -1))
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens), extra)


class UViT(nn.Module):
    """Velocity (or noise, for published weights) of noisy latents, given a time and a class."""

    def __init__(self, params: ClassConditionalParams) -> None:
        super().__init__()
        self.params = params.check()
        width, half = params.width, params.depth // 2
        self.patch_embed = PatchProjection(params.channels, width, params.patch)
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        if not params.time_mlp:
            self.time_embed = nn.Identity()
        self.label_emb = nn.Embedding(params.classes + 1, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 + (params.size // params.patch) ** 2, width))
        self.in_blocks = nn.ModuleList(UViTBlock(params, skip=False) for _ in range(half))
        self.mid_block = UViTBlock(params, skip=False)
        self.out_blocks = nn.ModuleList(UViTBlock(params, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, params.patch**2 * params.out_channels)
        self.final_layer = nn.Conv2d(params.out_channels, params.out_channels, 3, padding=1)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.label_emb.weight, std=0.02)

    def forward(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        labels: Int64[Tensor, " batch"],
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """`timestep` on a scale of 0 to 1000; label `classes` stands for no class."""
        time, label = self._embed(timestep, labels)
        tokens = torch.cat([label[:, None], time[:, None], self.patch_embed(latents)], 1) + self.pos_embed
        kept = []
        for block in self.in_blocks:
            tokens = block(tokens)
            kept.append(tokens)
        tokens = self.mid_block(tokens)
        for block in self.out_blocks:
            tokens = block(tokens, kept.pop())
        patches = self.decoder_pred(self.norm(tokens))[:, 2:]
        return self.final_layer(unpatchify(patches, self.params.patch))

    def condition(
        self, timestep: Shaped[Tensor, " batch"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """The embedding from which weights are generated: time plus class."""
        time, label = self._embed(timestep, labels)
        return time + label

    def _embed(self, timestep: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        check_labels(labels, self.params.classes)
        half = self.params.width // 2
        steps = torch.arange(half, device=timestep.device, dtype=torch.float32)
        angles = timestep[:, None].float() * torch.exp(-math.log(10000.0) * steps / half)
        waves = torch.cat([angles.cos(), angles.sin()], 1).to(self.pos_embed.dtype)
        return self.time_embed(waves), self.label_emb(labels)
