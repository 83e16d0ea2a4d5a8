"""Sana through the kernels: what one block reads and writes, without a pass over memory in between.

A block of the plain model launches about 35 kernels; here they are: one pass for the sum before the block,
norm and modulation; one product for queries, keys and values; two kernels for linear attention (tokens stay
rows, nothing is transposed); output product; one pass for gate and sum; query product; attention to the text;
output product; one pass for sum, norm and modulation; product with SiLU; depthwise convolution with its gate;
product. Its gate and sum are left to whoever reads the rows next. The modulations of all blocks are one
addition per step. With 4-bit weights the passes also quantize.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import linear

from fewer.generate.engine.graphs import StepGraphs
from fewer.generate.engine.layouts import lay_out
from fewer.generate.engine.products import Attended, Product, layer_key, make_product, run_in_order
from fewer.generate.engine.shell import shell_tree
from fewer.generate.transformer.attention import KeysValues
from fewer.generate.transformer.block import SanaBlock
from fewer.generate.transformer.embeddings import sincos_positions
from fewer.generate.transformer.prepared_text import PreparedText
from fewer.generate.transformer.sana import SanaTransformer
from fewer.kernels.cross_attention import cross_attention
from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.linear_attention import linear_attention
from fewer.kernels.norms import gated_add, gated_add_norm, modulated_norm
from fewer.kernels.scratch import WeightScratch

# Above this many tokens the GPU is busy whoever launches, and a graph's private memory would be large.
MOST_TOKENS_IN_A_GRAPH = 40_000

Six = Float[Tensor, "6 batch dim"]
Heads = Float[Tensor, "batch tokens heads head_dim"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokens of all pictures as rows, and a sum that the next kernel shall make: rows + gate · update."""

    rows: Float[Tensor, "rows dim"]
    update: Float[Tensor, "rows dim"] | None = None
    gate: Float[Tensor, "batch dim"] | None = None

    def summed(self) -> Float[Tensor, "rows dim"]:
        """The sum, made now."""
        return self.rows if self.update is None else gated_add(self.rows, self.update, self.gate)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The products of one block."""

    joint: Product
    attention_out: Product
    cross_query: Product
    cross_out: Product
    inverted: Product
    point: Product
    attended: Attended | None
    """`joint` and the linear attention behind it in one, if there is such a thing."""


_SUMMED = (True, False, True, False, True, False)
"""Which of them read rows that a sum or a norm has just made."""


class FusedSanaBlock(SanaBlock):
    """A `SanaBlock` with the same layers under the same names."""

    scratch: WeightScratch
    keep: bool
    fold: bool
    _tried: Hashable
    _plan: _Plan | None

    @classmethod
    def around(
        cls, original: SanaBlock, scratch: WeightScratch, *, keep: bool, fold: bool = False
    ) -> "FusedSanaBlock":
        """Shares the original's tensors. Layers may still be replaced afterwards (adapters)."""
        block = shell_tree(cls, original)
        block.scratch, block.keep, block.fold, block._tried, block._plan = scratch, keep, fold, None, None
        lay_out(block.ff.conv_depth)
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
                ways = {"keep": self.keep, "fold": self.fold}
                products = [
                    make_product(group, self.scratch, dtype, summed=summed, **ways)
                    for group, summed in zip(self.layers(), _SUMMED, strict=True)
                ]
            self._tried = (self.key(), dtype)  # asked again, since joining weights has moved them
            known = all(product is not None for product in products)
            self._plan = _Plan(*products, self._attended(products[0])) if known else None  # pyright: ignore
        return self._plan

    def _attended(self, joint: Product | None) -> Attended | None:
        """Who folds branches asks for speed, no bits of one device on several; those bands need keys."""
        attention, own = self.attn1, type(self).read_tokens is FusedSanaBlock.read_tokens
        plain = type(attention.norm_q) is nn.Identity and type(attention.norm_k) is nn.Identity
        if not (self.fold and own and plain and hasattr(joint, "for_attention")):
            return None
        return joint.for_attention(attention.heads)  # pyright: ignore

    def products(self, dtype: torch.dtype) -> tuple[Product, ...]:
        """In the order in which `run` calls them; none if the block runs as it always did."""
        plan = self.plan(dtype)
        if plan is None:
            return ()
        return (
            plan.joint, plan.attention_out, plan.cross_query, plan.cross_out, plan.inverted, plan.point
        )  # fmt: skip

    def run(
        self,
        rows: Rows,
        six: Six,
        modulation: Float[Tensor, "batch 6 dim"],
        text: KeysValues,
        text_mask: Bool[Tensor, "batch length"] | None,
        grid: tuple[int, int],
    ) -> Rows:
        """The block, given `modulation` and, ready made, its sum with the block's own table."""
        plan, batch = self.plan(rows.rows.dtype), len(modulation)
        if plan is None:
            tokens = rows.summed().unflatten(0, (batch, -1))
            return Rows(super().forward(tokens, modulation, text, text_mask, grid).flatten(0, 1))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = six.unbind(0)
        before = {"update": rows.update, "gate": rows.gate, "shift": shift_1, "scale": scale_1}
        if plan.attended is not None and plan.attended.fits(rows.rows, batch):
            attended, base = plan.attended(rows.rows, batch, **before, eps=self.norm1.eps)
        else:
            joint, base = plan.joint(rows.rows, **before, eps=self.norm1.eps)
            attended = self._attend(joint.unflatten(0, (batch, -1)).unflatten(2, (3, -1)))
        update, _ = plan.attention_out(attended)
        query, base = plan.cross_query(base, update=update, gate=gate_1)
        update, _ = plan.cross_out(self._read_text(query.unflatten(0, (batch, -1)), text, text_mask))
        mixed, base = self.mix(plan, base, update, (shift_2, scale_2), grid)
        update, _ = plan.point(mixed.flatten(0, 2))
        return Rows(base, update, gate_2)

    def mix(
        self,
        plan: _Plan,
        rows: Float[Tensor, "rows dim"],
        update: Float[Tensor, "rows dim"],
        modulation: tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]],
        grid: tuple[int, int],
    ) -> tuple[Float[Tensor, "batch height width hidden"], Float[Tensor, "rows dim"]]:
        """The part of Mix-FFN that looks at neighbours, and rows + update; patch parallelism overrides it."""
        shift, scale = modulation
        hidden, total = plan.inverted(
            rows, update=update, shift=shift, scale=scale, eps=self.norm2.eps, silu=True
        )
        depth = self.ff.conv_depth
        assert depth.bias is not None
        return depthwise_gated(hidden.view(len(shift), *grid, -1), depth.weight[:, 0], depth.bias), total

    def read_tokens(self, query: Heads, key: Heads, value: Heads) -> Heads:
        """Linear attention; patch parallelism overrides it, to add the states of all bands."""
        # Who folds branches asks for speed: no bits of one device on several.
        return linear_attention(query, key, value, exact=self.attn1.exact and not self.fold)

    def _attend(self, joint: Float[Tensor, "batch tokens 3 inner"]) -> Float[Tensor, "rows inner"]:
        attention = self.attn1
        query, key, value = joint.unbind(2)
        query, key, value = (
            part.unflatten(2, (attention.heads, -1))
            for part in (attention.norm_q(query), attention.norm_k(key), value)
        )
        return self.read_tokens(query, key, value).flatten(2).flatten(0, 1)

    def _read_text(
        self, query: Float[Tensor, "batch tokens inner"], text: KeysValues, mask: Tensor | None
    ) -> Float[Tensor, "rows inner"]:
        attention = self.attn2
        heads = attention.norm_q(query).unflatten(2, (attention.heads, -1))
        return cross_attention(heads, text.keys, text.values, mask).flatten(2).flatten(0, 1)


class FusedSana(SanaTransformer):
    """A `SanaTransformer` to its callers; `denoise` runs the fused blocks, on a GPU inside a CUDA graph."""

    graphs: StepGraphs
    graphed: bool | None
    _positions: dict[tuple[int, int, torch.device], Tensor]
    _version: tuple[object, Hashable]

    @classmethod
    def around(
        cls,
        original: SanaTransformer,
        *,
        keep_expanded: bool,
        graphed: bool | None,
        fold_branch: bool = False,
    ) -> "FusedSana":
        """Shares the original's tensors. `graphed`: None is "on a GPU"; True on the CPU is for tests."""
        model = shell_tree(cls, original)
        scratch = WeightScratch()
        model.transformer_blocks = nn.ModuleList(
            FusedSanaBlock.around(block, scratch, keep=keep_expanded, fold=fold_branch)
            if type(block) is SanaBlock
            else block
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
        rows = Rows(self._embed(latents).flatten(0, 1))
        blocks = [block for block in self.transformer_blocks if isinstance(block, FusedSanaBlock)]
        run_in_order([product for block in blocks for product in block.products(rows.rows.dtype)])
        modulation, embedding = self._embed_time(timestep, guidance)
        tables = torch.stack([block.scale_shift_table for block in self.transformer_blocks])
        # (depth, 6, batch, dim): every vector that a kernel reads is contiguous.
        sixes = tables[:, :, None] + modulation.transpose(0, 1)
        for block, six, keys_values in zip(self.transformer_blocks, sixes, text.blocks, strict=True):
            rows = block.run(rows, six, modulation, keys_values, text.mask, grid)
        shift, scale = (self.scale_shift_table[:, None] + embedding).unbind(0)
        eps, batch = self.norm_out.eps, len(latents)
        if rows.update is None:
            normed = modulated_norm(rows.rows.unflatten(0, (batch, -1)), shift, scale, eps)
        else:
            _, flat = gated_add_norm(rows.rows, rows.update, rows.gate, shift, scale, eps)
            normed = flat.unflatten(0, (batch, -1))
        return self._to_latents(normed, grid)

    def _embed(self, latents: Tensor) -> Float[Tensor, "batch tokens dim"]:
        """Patches to contiguous rows; positions are computed once per size, not once per step."""
        embed, tokens = self.patch_embed, self._patches(latents)
        if embed.interpolation_scale is None:
            return tokens.contiguous()
        height, width = latents.shape[2:]
        grid = (height // self.params.patch_size, width // self.params.patch_size)
        place = (*grid, latents.device)
        if place not in self._positions:
            with torch.inference_mode(False):
                self._positions[place] = sincos_positions(
                    *grid, tokens.shape[2], embed.base, embed.interpolation_scale, tokens.device
                )
        return (tokens + self._positions[place]).to(tokens.dtype).contiguous()

    def _patches(self, latents: Tensor) -> Float[Tensor, "batch tokens dim"]:
        """Tokens without positions; on a band the very same way, since another would give other bits."""
        projection, batch = self.patch_embed.proj, len(latents)
        if type(projection) is nn.Conv2d and not projection._forward_hooks:
            # As a product of rows, where a convolution's result would be transposed in a pass of its own.
            p = self.params.patch_size
            rows = rearrange(latents, "b c (h p) (w q) -> (b h w) (c p q)", p=p, q=p)
            return linear(rows, projection.weight.flatten(1), projection.bias).unflatten(0, (batch, -1))
        return projection(latents).flatten(2).transpose(1, 2)

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
