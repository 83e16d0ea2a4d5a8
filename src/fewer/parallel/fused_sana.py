"""The engine's Sana on several devices: fused kernels and CUDA graphs on every rank, collectives inside them.

A step is captured whole: cutting, all blocks with their exchanges, and joining. Displaced mode needs two
graphs, one that exchanges at once and one that reads what the step before left in fixed places.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewer.generate.engine.sana import FusedSana, FusedSanaBlock, Heads, _Plan
from fewer.generate.engine.shell import shell_tree
from fewer.generate.transformer.prepared_text import PreparedText
from fewer.kernels.linear_attention import linear_attention_apply, linear_attention_state
from fewer.kernels.scratch import WeightScratch
from fewer.parallel.convolution import depthwise_band
from fewer.parallel.graphs import BandGraphs
from fewer.parallel.group import Group
from fewer.parallel.peer_exchange import PeerExchange
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.process_group import ProcessGroup
from fewer.parallel.sana import replace_layers
from fewer.parallel.session import Session
from fewer.parallel.spread import Spread

# Sizes whose memories are kept; with more of them all are forgotten, the graphs that point to them too.
MOST_SIZES = 4


class BandSanaBlock(FusedSanaBlock):
    """A fused block on a band of the picture."""

    session: Session
    layer: str
    turn: int

    @classmethod
    def of_band(
        cls, original: FusedSanaBlock, session: Session, index: int, scratch: WeightScratch
    ) -> "BandSanaBlock":
        """Shares the original's tensors and products; 4-bit ones are made anew: they write to a scratch."""
        block, layer = shell_tree(cls, original), f"transformer_blocks.{index}"
        block.session, block.layer, block.turn = session, layer, index % 2
        if any(hasattr(module, "fuse") for group in block.layers() for module in group):
            block.scratch, block._tried = scratch, None
        replace_layers(block, session, f"{layer}.")  # for the path without products
        return block

    def read_tokens(self, query: Heads, key: Heads, value: Heads) -> Heads:
        if self.session.group.size == 1:
            return super().read_tokens(query, key, value)
        exchange = self._exchange()
        if exchange is not None and not self.attn1.exact:
            longest = self._longest(key.shape[1])
            if exchange.fits_state(key, longest):
                exchange.book_state(self.session.group.traffic, key, longest)
                return exchange.attend(query, key, value, longest, self.turn)
        state = linear_attention_state(key, value, exact=self.attn1.exact)
        whole = self.session.start_state(f"{self.layer}.attn1", state, ones=-2).wait()
        return linear_attention_apply(query, whole)

    def mix(
        self,
        plan: _Plan,
        rows: Float[Tensor, "rows dim"],
        update: Float[Tensor, "rows dim"],
        modulation: tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]],
        grid: tuple[int, int],
    ) -> tuple[Float[Tensor, "batch height width hidden"], Float[Tensor, "rows dim"]]:
        if self.session.group.size == 1:
            return super().mix(plan, rows, update, modulation, grid)
        (shift, scale), depth = modulation, self.ff.conv_depth
        assert depth.bias is not None
        totals: list[Tensor] = []

        def widen(part: Tensor) -> Tensor:
            flat = part.reshape(-1, part.shape[3])
            # The band's own sum is made in the product; rows that come from a neighbour are sums already.
            more = None if totals else update
            wide, total = plan.inverted(
                flat, update=more, shift=shift, scale=scale, eps=self.norm2.eps, silu=True
            )
            totals.append(total)
            return wide.view(*part.shape[:3], -1)

        shape, exchange = (len(shift), *grid, -1), self._exchange()
        numbers = len(shift) * grid[1] * len(depth.weight)  # of a widened border row
        if (
            exchange is not None
            and self.session.plan.border != "tokens"
            and exchange.fits_rows(numbers, rows.dtype)
        ):
            exchange.book_rows(self.session.group.traffic, numbers * rows.element_size())
            wide = widen(rows.view(shape))
            return exchange.depthwise(wide, depth.weight[:, 0], depth.bias, self.turn), totals[0]
        band = (rows.view(shape), update.view(shape))
        mixed = depthwise_band(self.session, f"{self.layer}.ff", band, widen, depth.weight[:, 0], depth.bias)
        return mixed, totals[0]

    def _exchange(self) -> PeerExchange | None:
        """The group's memory for exchanges without collectives, where this step can use it."""
        session = self.session
        usable = session.plan.mode == "sync" and not session.alone and session.axis == 2
        return session.group.peer_exchange if usable and isinstance(session.group, ProcessGroup) else None

    def _longest(self, own: int) -> int:
        """Tokens of the largest band, where this rank's has `own`."""
        lengths = self.session.bands.lengths
        return own * max(lengths) // lengths[self.session.group.rank]


class ParallelFusedSana(FusedSana):
    """A `FusedSana` to its callers: full latents in, full velocity out, on every rank."""

    spread: Spread
    exact_graphs: BandGraphs
    displaced_graphs: BandGraphs

    @classmethod
    def of_bands(cls, original: FusedSana, plan: ParallelPlan, group: Group) -> "ParallelFusedSana":
        """Shares the original's tensors, under the same names."""
        model = shell_tree(cls, original)
        model.spread = Spread(plan, group, original.params)
        session = model.spread.session
        on_gpu = original.proj_out.weight.is_cuda
        session.static = on_gpu if original.graphed is None else original.graphed
        scratch = WeightScratch()
        model.transformer_blocks = nn.ModuleList(
            BandSanaBlock.of_band(block, session, index, scratch)
            if isinstance(block, FusedSanaBlock)
            else block
            for index, block in enumerate(original.transformer_blocks)
        )
        replace_layers(model, session)
        model.exact_graphs = BandGraphs(model._from_flat, session=session)
        model.displaced_graphs = BandGraphs(model._from_flat, session=session)
        model.graphs, model._version = model.exact_graphs, (None, None)
        return model

    @property
    def session(self) -> Session:
        """Which step, which band, and what the others said."""
        return self.spread.session

    @torch.no_grad()
    def denoise(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: PreparedText,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        spread, samples = self.spread, latents.shape[0]
        if len(spread.session.stores) > MOST_SIZES:
            self.forget()
        latents, timestep, text, guidance = spread.enter(latents, timestep, text, guidance)
        self.graphs = self.exact_graphs if spread.session.exact else self.displaced_graphs
        return spread.join_halves(super().denoise(latents, timestep, text, guidance), samples)

    def step(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: PreparedText,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        spread = self.spread
        velocity = super().step(spread.own_band(latents), timestep, text, guidance)
        spread.session.end_step()
        return spread.join_bands(velocity)

    def _embed_time(
        self, timestep: Shaped[Tensor, " batch"], guidance: Float[Tensor, " batch"] | None
    ) -> tuple[Float[Tensor, "batch 6 dim"], Float[Tensor, "batch dim"]]:
        return self.spread.embedded(super()._embed_time, timestep, guidance)

    def forget(self) -> None:
        """Drops all graphs and the places they point to."""
        for graphs in (self.exact_graphs, self.displaced_graphs):
            graphs.forget()
        self.spread.session.stores.clear()
        self.spread.session.begin_image()

    def _embed(self, latents: Tensor) -> Float[Tensor, "batch tokens dim"]:
        patches, size = self._patches(latents), self.params.patch_size
        grid = (latents.shape[2] // size, latents.shape[3] // size)
        return self.patch_embed.with_positions(patches, grid, size).contiguous()  # pyright: ignore
