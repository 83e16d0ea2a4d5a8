"""Sana through the kernels: what one block reads and writes, without a pass over memory in between.

A block of the plain model launches about 35 kernels; here they are: norm + modulation, one product for
queries, keys and values, two for linear attention (tokens stay rows, nothing is transposed), output product,
gate and sum; query product, attention to the text, output product with its sum; norm + modulation, product,
SiLU, depthwise convolution with its gate, product, gate and sum. The modulations of all blocks are one
addition per step. With 4-bit weights the norms also quantize, and the sums move into the products.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fewer.generate.engine.graphs import StepGraphs
from fewer.generate.engine.products import Product, layer_key, make_product
from fewer.generate.engine.shell import shell
from fewer.generate.transformer.attention import KeysValues
from fewer.generate.transformer.block import SanaBlock
from fewer.generate.transformer.embeddings import sincos_positions
from fewer.generate.transformer.prepared_text import PreparedText
from fewer.generate.transformer.sana import SanaTransformer
from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.linear_attention import linear_attention_apply, linear_attention_state
from fewer.kernels.norms import modulated_norm
from fewer.kernels.scratch import WeightScratch

# Above this many tokens the GPU is busy whoever launches, and a graph's private memory would be large.
MOST_TOKENS_IN_A_GRAPH = 8192

Six = Float[Tensor, "6 batch dim"]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The products of one block."""

    joint: Product
    attention_out: Product
    cross_query: Product
    cross_out: Product
    inverted: Product
    point: Product


class FusedSanaBlock(SanaBlock):
    """A `SanaBlock` with the same layers under the same names."""

    scratch: WeightScratch
    keep: bool
    _tried: Hashable
    _plan: _Plan | None

    @classmethod
    def around(cls, original: SanaBlock, scratch: WeightScratch, *, keep: bool) -> "FusedSanaBlock":
        """Shares the original's tensors. Layers may still be replaced afterwards (adapters)."""
        block = shell(cls, original)
        block.scratch, block.keep, block._tried, block._plan = scratch, keep, None, None
        return block

    def layers(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The layers, those that read the same rows together, in the order of `_Plan`."""
        return (
            (self.attn1.to_q, self.attn1.to_k, self.attn1.to_v),
            (self.attn1.to_out[0],),
            (self.attn2.to_q,),
            (self.attn2.to_out[0],),
            (self.ff.conv_inverted,),
            (self.ff.conv_point,),
        )

    def key(self) -> Hashable:
        """Changes when a layer does."""
        return tuple(layer_key(layer) for group in self.layers() for layer in group)

    def plan(self, dtype: torch.dtype) -> _Plan | None:
        """The block's products; None if a layer has none, or fp16 needs the plain path's clamps."""
        if dtype == torch.float16:
            return None
        if self._tried != (self.key(), dtype):
            with torch.inference_mode(False), torch.no_grad():
                products = [
                    make_product(group, self.scratch, dtype, keep=self.keep) for group in self.layers()
                ]
            self._tried = (self.key(), dtype)  # asked again, since joining weights has moved them
            known = all(product is not None for product in products)
            self._plan = _Plan(*products) if known else None  # pyright: ignore[reportArgumentType]
        return self._plan

    def run(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        six: Six,
        modulation: Float[Tensor, "batch 6 dim"],
        text: KeysValues,
        text_mask: Bool[Tensor, "batch length"] | None,
        grid: tuple[int, int],
    ) -> Float[Tensor, "batch tokens dim"]:
        """The block, given `modulation` and, ready made, its sum with the block's own table."""
        plan = self.plan(tokens.dtype)
        if plan is None:
            return super().forward(tokens, modulation, text, text_mask, grid)
        shape, eps = tokens.shape, self.norm1.eps
        rows = tokens.reshape(-1, shape[2])
        joint = plan.joint(rows, shift=six[0], scale=six[1], eps=eps)
        attended = self._attend(joint.view(shape[0], shape[1], 3, -1))
        rows = plan.attention_out(attended, gate=six[2], residual=rows)
        read = self._read_text(plan.cross_query(rows).view(shape[0], shape[1], -1), text, text_mask)
        rows = plan.cross_out(read, residual=rows)
        mixed = self.mix(plan, rows, six, grid)
        return plan.point(mixed.flatten(0, 2), gate=six[5], residual=rows).view(shape)

    def mix(
        self, plan: _Plan, rows: Float[Tensor, "rows dim"], six: Six, grid: tuple[int, int]
    ) -> Float[Tensor, "batch height width hidden"]:
        """The part of Mix-FFN that looks at neighbours; patch parallelism overrides it."""
        hidden = plan.inverted(rows, shift=six[3], scale=six[4], eps=self.norm2.eps, silu=True)
        depth = self.ff.conv_depth
        assert depth.bias is not None
        return depthwise_gated(hidden.view(six.shape[1], *grid, -1), depth.weight[:, 0], depth.bias)

    def whole_state(
        self, state: Float[Tensor, "batch heads head_dim_and_one head_dim"]
    ) -> Float[Tensor, "batch heads head_dim_and_one head_dim"]:
        """The attention's state over the whole picture; patch parallelism adds the other bands' here."""
        return state

    def _attend(self, joint: Float[Tensor, "batch tokens 3 inner"]) -> Float[Tensor, "rows inner"]:
        attention = self.attn1
        query, key, value = joint.unbind(2)
        query, key, value = (
            part.unflatten(2, (attention.heads, -1))
            for part in (attention.norm_q(query), attention.norm_k(key), value)
        )
        state = self.whole_state(linear_attention_state(key, value))
        return linear_attention_apply(query, state).flatten(2).flatten(0, 1)

    def _read_text(
        self, query: Float[Tensor, "batch tokens inner"], text: KeysValues, mask: Tensor | None
    ) -> Float[Tensor, "rows inner"]:
        attention = self.attn2
        heads = attention.norm_q(query).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        visible = None if mask is None else mask[:, None, None, :]
        read = scaled_dot_product_attention(heads, text.keys, text.values, attn_mask=visible)
        return read.transpose(1, 2).flatten(2).flatten(0, 1)


class FusedSana(SanaTransformer):
    """A `SanaTransformer` to its callers; `denoise` runs the fused blocks, on a GPU inside a CUDA graph."""

    graphs: StepGraphs
    graphed: bool | None
    _positions: dict[tuple[int, int, torch.device], Tensor]
    _version: tuple[object, Hashable]

    @classmethod
    def around(cls, original: SanaTransformer, *, keep_expanded: bool, graphed: bool | None) -> "FusedSana":
        """Shares the original's tensors. `graphed`: None is "on a GPU"; True on the CPU is for tests."""
        model = shell(cls, original)
        scratch = WeightScratch()
        model.transformer_blocks = nn.ModuleList(
            FusedSanaBlock.around(block, scratch, keep=keep_expanded) if type(block) is SanaBlock else block
            for block in original.transformer_blocks
        )
        dtype = original.scale_shift_table.dtype
        for block in model.transformer_blocks:
            if isinstance(block, FusedSanaBlock):
                block.plan(dtype)
        model.graphed, model._positions, model._version = graphed, {}, (None, None)
        model.graphs = StepGraphs(model._from_flat)
        return model

    def denoise(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: PreparedText,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """As `SanaTransformer.denoise`, and the same result up to rounding.

        After changing the strength of an adapter, prepare the text anew: a graph holds the old strength.
        """
        if torch.is_grad_enabled() or not all(
            isinstance(block, FusedSanaBlock) for block in self.transformer_blocks
        ):
            return super().denoise(latents, timestep, text, guidance)
        height, width = self._check_latents(latents, guidance)
        if not self.in_graph(latents, len(latents) * height * width):
            return self.step(latents, timestep, text, guidance)
        if self._version[0] is not text:
            self._version = (text, self._key())
        constants = [tensor for block in text.blocks for tensor in (block.keys, block.values)]
        constants += [] if text.mask is None else [text.mask]
        inputs = [latents, timestep] + ([] if guidance is None else [guidance])
        version = (self._version[1], text.mask is not None, guidance is not None)
        return self.graphs(inputs, constants, text, version)

    def in_graph(self, latents: Tensor, tokens: int) -> bool:
        """Whether a step with this many tokens is captured."""
        wanted = latents.is_cuda if self.graphed is None else self.graphed
        return wanted and tokens <= MOST_TOKENS_IN_A_GRAPH

    def step(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: PreparedText,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """One evaluation without a graph: nothing in it waits for the GPU, so it can be captured."""
        grid = self._check_latents(latents, guidance)
        tokens = self._embed(latents)
        scaled = None if guidance is None else guidance * self.params.guidance_embeds_scale
        modulation, embedding = self.time_embed(timestep.float(), scaled)
        tables = torch.stack([block.scale_shift_table for block in self.transformer_blocks])
        # (depth, 6, batch, dim): every vector that a kernel reads is contiguous.
        sixes = tables[:, :, None] + modulation.transpose(0, 1)
        for block, six, keys_values in zip(self.transformer_blocks, sixes, text.blocks, strict=True):
            tokens = block.run(tokens, six, modulation, keys_values, text.mask, grid)
        shift, scale = (self.scale_shift_table[:, None] + embedding).unbind(0)
        patches = self.proj_out(modulated_norm(tokens, shift, scale, self.norm_out.eps))
        p = self.params.patch_size
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=p, q=p)

    def _embed(self, latents: Tensor) -> Float[Tensor, "batch tokens dim"]:
        """Patches to contiguous rows; positions are computed once per size, not once per step."""
        embed = self.patch_embed
        patches = embed.proj(latents)
        tokens = patches.flatten(2).transpose(1, 2)
        if embed.interpolation_scale is None:
            return tokens.contiguous()
        place = (*patches.shape[2:], latents.device)
        if place not in self._positions:
            with torch.inference_mode(False):
                self._positions[place] = sincos_positions(
                    *patches.shape[2:], tokens.shape[2], embed.base, embed.interpolation_scale, tokens.device
                )
        return (tokens + self._positions[place]).to(tokens.dtype).contiguous()

    def _from_flat(self, latents: Tensor, timestep: Tensor, *rest: Tensor) -> Tensor:
        """`step` with the text as a list of tensors, as a graph's buffers hold it."""
        flat = list(rest)
        guidance = flat.pop(0) if self.params.guidance_embeds else None
        depth = len(self.transformer_blocks)
        mask = flat.pop() if len(flat) > 2 * depth else None
        blocks = tuple(KeysValues(flat[2 * i], flat[2 * i + 1]) for i in range(depth))
        return self.step(latents, timestep, PreparedText(blocks, mask), guidance)

    def _key(self) -> Hashable:
        return tuple(
            block.key() if isinstance(block, FusedSanaBlock) else id(block)
            for block in self.transformer_blocks
        )
