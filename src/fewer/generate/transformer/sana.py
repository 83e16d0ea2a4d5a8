"""The linear diffusion transformer of Sana (arXiv 2410.10629, figure 5), from latents to velocity.

Read `forward` with the figure: patches, time, text; then the blocks, each with linear attention over the
image, attention to the text and a convolutional feed-forward; then a modulated norm and a projection back to
patches. Attribute names are those of the published checkpoints, so files load without a table.
Quantization, parallelism and LoRA attach from outside by replacing submodules.
"""

from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewer.core.errors import ConfigError
from fewer.generate.transformer.block import SanaBlock
from fewer.generate.transformer.block_tensors import fits_whole
from fewer.generate.transformer.drawing import draw_blocks, draws_on_a_cpu, fold_text
from fewer.generate.transformer.embeddings import (
    GuidedTimeEmbedding,
    PatchEmbed,
    TextProjection,
    TimeEmbedding,
)
from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.prepared_text import (
    PreparedText,
    drop_masked,
    leading_single,
    whole_if_empty,
)
from fewer.generate.transformer.whole_blocks import whole_blocks


class SanaTransformer(nn.Module):
    """Velocity of noisy latents, given a time and a text."""

    def __init__(self, params: SanaParams) -> None:
        super().__init__()
        self.params = params.check()
        width, patch = params.width, params.patch_size
        self.whole = False
        """Training on a GPU: all blocks as one function with its own backward pass, where they are plain."""
        self.recompute_blocks = False
        """Forgets what is inside a block in the forward pass and computes it again in the backward pass."""

        self.patch_embed = PatchEmbed(
            params.in_channels, width, patch, params.sample_size // patch, params.interpolation_scale
        )
        self.time_embed = GuidedTimeEmbedding(width) if params.guidance_embeds else TimeEmbedding(width)
        self.caption_projection = TextProjection(params.caption_channels, width)
        self.caption_norm = nn.RMSNorm(width, eps=1e-5)
        self.transformer_blocks = nn.ModuleList(SanaBlock(params) for _ in range(params.depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, patch * patch * params.out_channels)

    def fuse_attention(self, on: bool = True, *, own: bool = False) -> "SanaTransformer":
        """Lets the blocks use the kernels made for training (few tokens, plain layers); returns itself.

        `own` adds the kernels for the middle of the Mix-FFN and for the attention to the text.
        """
        for block in self.transformer_blocks:
            block.attn1.fused = block.ff.fused = on
            block.attn2.fused = block.ff.own_middle = on and own
        return self

    def forward(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: Float[Tensor, "batch length text_dim"],
        text_mask: Shaped[Tensor, "texts mask_length"] | None = None,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """Velocity (noise minus data) at `timestep`, on a scale of 0 to 1000 (Sprint: 0 to 1).

        `text` are hidden states of the text encoder and `text_mask` is 1 where a token counts. Shapes of
        intermediate results don't depend on the mask, so this is the form to train and compile. For many
        steps with one text, call `prepare` once and `denoise` in each step: same result, less work.
        """
        if self.whole and torch.is_grad_enabled() and text_mask is not None and not self.recompute_blocks:
            self._check_text(text, text_mask)
            grid = self._check_latents(latents, guidance)
            if fits_whole(self.transformer_blocks, grid[0] * grid[1], text.shape[1]):
                return self._forward_whole(latents, timestep, text, text_mask, guidance, grid)
        return self.denoise(latents, timestep, self.prepare(text, text_mask, drop=False), guidance)

    def _forward_whole(
        self, latents: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor, guidance: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        tokens = self.patch_embed(latents)
        modulation, embedding = self._embed_time(timestep, guidance)
        projected = self.caption_norm(self.caption_projection(text))
        shift, scale = (self.scale_shift_table + embedding[:, None]).unbind(1)
        blocks: list[SanaBlock] = list(self.transformer_blocks)  # type: ignore[arg-type]
        visible = whole_if_empty(text_mask)
        return self._to_latents(
            whole_blocks(blocks, tokens, modulation, projected, visible, (shift, scale), grid), grid
        )

    def prepare(
        self,
        text: Float[Tensor, "batch length text_dim"],
        text_mask: Shaped[Tensor, "texts mask_length"] | None = None,
        *,
        drop: bool = True,
    ) -> PreparedText:
        """Keys and values of all blocks for a text; `drop` leaves out what the mask hides.

        Raises `ConfigError` if text and mask or text and model don't fit together.
        """
        self._check_text(text, text_mask)
        mask = None if text_mask is None else whole_if_empty(text_mask)
        alone = 0
        if mask is not None and drop:
            alone = leading_single(mask)
            text, mask = drop_masked(text, mask)
        projected = self.caption_norm(self.caption_projection(text))
        blocks = (block.attn2.prepare(projected) for block in self.transformer_blocks)
        prepared = PreparedText(tuple(replace(block, alone=alone) for block in blocks), mask)
        ready = drop and draws_on_a_cpu(self.transformer_blocks, projected)
        return fold_text(self.transformer_blocks, prepared) if ready else prepared

    def denoise(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: PreparedText,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """`forward` with the text's half done beforehand. `guidance` is for Sprint models alone."""
        grid = self._check_latents(latents, guidance)
        tokens = self.patch_embed(latents)
        modulation, embedding = self._embed_time(timestep, guidance)
        if draws_on_a_cpu(self.transformer_blocks, tokens) and bool((timestep == timestep[:1]).all()):
            tokens = draw_blocks(self.transformer_blocks, tokens, modulation, text, grid)
            return self._project(tokens, embedding, grid)

        for block, keys_values in zip(self.transformer_blocks, text.blocks, strict=True):
            if self.recompute_blocks and torch.is_grad_enabled():
                tokens = checkpoint(
                    block, tokens, modulation, keys_values, text.mask, grid, use_reentrant=False
                )
            else:
                tokens = block(tokens, modulation, keys_values, text.mask, grid)

        return self._project(tokens, embedding, grid)

    def _project(
        self, tokens: Float[Tensor, "batch tokens dim"], embedding: Tensor, grid: tuple[int, int]
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        shift, scale = (self.scale_shift_table + embedding[:, None]).chunk(2, dim=1)
        return self._to_latents(self.norm_out(tokens) * (1 + scale) + shift, grid)

    def _embed_time(
        self, timestep: Shaped[Tensor, " batch"], guidance: Float[Tensor, " batch"] | None
    ) -> tuple[Float[Tensor, "batch 6 dim"], Float[Tensor, "batch dim"]]:
        """What modulates the blocks, and the embedding that modulates the last norm."""
        scaled = None if guidance is None else guidance * self.params.guidance_embeds_scale
        return self.time_embed(timestep.float(), scaled)

    def _to_latents(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """Projection of the normed tokens and patches back to a picture."""
        p = self.params.patch_size
        patches = self.proj_out(tokens)
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=p, q=p)

    def _check_latents(self, latents: Tensor, guidance: Tensor | None) -> tuple[int, int]:
        channels, height, width = latents.shape[1:]
        patch = self.params.patch_size
        if channels != self.params.in_channels:
            raise ConfigError(f"latents have {channels} channels, this Sana takes {self.params.in_channels}")
        if height % patch or width % patch:
            raise ConfigError(f"latents of {height}x{width} don't divide into patches of {patch}x{patch}")
        if (guidance is not None) != self.params.guidance_embeds:
            need = "needs" if self.params.guidance_embeds else "does not take"
            raise ConfigError(f"this Sana {need} a guidance value inside the network")
        return height // patch, width // patch

    def _check_text(self, text: Tensor, text_mask: Tensor | None) -> None:
        if text.shape[-1] != self.params.caption_channels:
            raise ConfigError(
                f"the text encoder gives {text.shape[-1]} channels, this Sana was built for "
                f"{self.params.caption_channels} (caption_channels); pair each Sana with its own text encoder"
            )
        if text_mask is not None and text_mask.shape != text.shape[:2]:
            raise ConfigError(
                f"text of {tuple(text.shape[:2])} (batch, length) and mask of {tuple(text_mask.shape)} differ"
            )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        *,
        params: SanaParams | None = None,
    ) -> "SanaTransformer":
        """Reads a diffusers folder or a published native checkpoint; see `formats.load_transformer`."""
        from fewer.generate.transformer.formats import load_transformer

        return load_transformer(folder, dtype, device, params=params)

    def save(self, folder: str | Path, *, native: bool = False) -> list[Path]:
        """Writes config.json and safetensors; see `formats.save_transformer`."""
        from fewer.generate.transformer.formats import save_transformer

        return save_transformer(self, folder, native=native)
