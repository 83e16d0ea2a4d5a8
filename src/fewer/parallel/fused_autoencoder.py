"""The engine's DC-AE on a band: its own blocks and kernels, told what lies beyond the band's borders.

A block that sees R rows far is run on the band as if it were alone, and once more on a strip of 3 R rows
around each border; R rows of that result take the place of the wrong ones. No copy of the band is made, and
how a block computes does not matter. Only the attention of an EfficientViT block sees the whole picture.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewer.core.modules import replace_modules
from fewer.generate.autoencoder.blocks import ATTENTION_EPSILON
from fewer.generate.autoencoder.dc_ae import Decoder
from fewer.generate.engine.autoencoder import (
    FusedDecoder,
    FusedEfficientViTBlock,
    FusedResBlock,
    FusedUpBlock,
    Heads,
    Rows,
    _version,
)
from fewer.generate.engine.shell import shell
from fewer.kernels.linear_attention import linear_attention_apply, linear_attention_state
from fewer.parallel.convolution import depthwise_band
from fewer.parallel.graphs import BandGraphs
from fewer.parallel.session import Session

# Of a band: launching takes 45 ms, which a larger one computes for.
MOST_LATENTS_IN_A_GRAPH = 4096

# Block: rows of its input that it sees beyond a pixel, rows out per row in.
REACH: dict[type[nn.Module], tuple[int, int]] = {FusedResBlock: (2, 1), FusedUpBlock: (1, 2)}


class BandBlock(nn.Module):
    """A block of convolutions, (batch, channels, height, width) in and out. It holds the block's children."""

    def __init__(self, block: nn.Module, session: Session, layer: str, reach: int, factor: int) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not a child of its own: its children stand here under their names
        for name, child in block.named_children():
            self.add_module(name, child)
        self.session, self.layer, self.reach, self.factor = session, layer, reach, factor

    def forward(self, x: Tensor) -> Tensor:
        return with_neighbours(
            self.session, self.layer, x, self.session.axis, self.reach, self.factor, self.block
        )


class BandEfficientViTBlock(FusedEfficientViTBlock):
    """Attention over all bands, then the gated convolution with the neighbours' rows."""

    session: Session
    layer: str

    @classmethod
    def of_band(
        cls, original: FusedEfficientViTBlock, session: Session, layer: str
    ) -> "BandEfficientViTBlock":
        """Shares the original's tensors; its children are replaced by the caller."""
        block = shell(cls, original)
        block.session, block.layer = session, layer
        return block

    def read_pixels(self, query: Heads, key: Heads, value: Heads, part: int) -> Heads:
        state = linear_attention_state(key, value)
        whole = self.session.start_state(f"{self.layer}.attn.{part}", state, ones=-2).wait()
        return linear_attention_apply(query, whole, ATTENTION_EPSILON)

    def aggregated(self, joint: Rows, scale: int) -> Rows:
        reach = self.attn.to_qkv_multiscale[scale].proj_in.kernel_size[0] // 2

        def whole(rows: Rows) -> Rows:
            return super(BandEfficientViTBlock, self).aggregated(rows, scale)

        layer = f"{self.layer}.aggregated.{scale}"
        return with_neighbours(self.session, layer, joint, self.session.axis - 1, reach, 1, whole)

    def mix(self, rows: Rows) -> Tensor:
        depth = self.conv_out.conv_depth
        assert depth.bias is not None
        layer = f"{self.layer}.conv_out"
        return depthwise_band(self.session, layer, rows, self.widen, depth.weight[:, 0], depth.bias)


class BandDecoder(FusedDecoder):
    """The decoder without strips, since a band is one; with `graphed` small bands are decoded in a graph."""

    session: Session
    graphed: bool
    """Exchanges are captured too. Off by default: it has not run on a GPU yet."""

    def become_band(self, session: Session) -> None:
        """Of a fused decoder whose blocks are those of a band already."""
        self.session, self.graphed = session, False
        self.graphs = BandGraphs(lambda latents: Decoder.forward(self, latents), limit=2, session=session)

    def forward(self, latents: Tensor) -> Tensor:
        # Decided by the largest band, alike on all ranks: capturing runs the exchanges several times.
        largest = latents.shape[0] * max(self.session.bands.lengths) * latents.shape[3]
        if not self.graphed or torch.is_grad_enabled() or largest > MOST_LATENTS_IN_A_GRAPH:
            return Decoder.forward(self, latents)
        weights = [
            self.conv_in.weight,
            *(weight for weight in self.up_blocks.parameters() if weight.ndim > 2),
        ]
        return self.graphs([latents], [], None, tuple(_version(weight) for weight in weights))


def with_neighbours(
    session: Session,
    layer: str,
    x: Tensor,
    axis: int,
    reach: int,
    factor: int,
    block: Callable[[Tensor], Tensor],
) -> Tensor:
    """`block` of a band, whose output rows see `reach` input rows far and count `factor` a row of input."""
    rows = session.start_rows(layer, x, reach, axis)
    if x.shape[axis] < 2 * reach:
        before, after = rows.wait()
        parts = [part for part in (before, x, after) if part is not None]
        whole = block(torch.cat(parts, dim=axis))
        skipped = 0 if before is None else reach * factor
        return whole.narrow(axis, skipped, x.shape[axis] * factor)
    out = block(x)
    before, after = rows.wait()
    wrong, last = reach * factor, x.shape[axis] - 2 * reach
    if before is not None:
        strip = block(torch.cat([before, x.narrow(axis, 0, 2 * reach)], dim=axis))
        out.narrow(axis, 0, wrong).copy_(strip.narrow(axis, wrong, wrong))
    if after is not None:
        strip = block(torch.cat([x.narrow(axis, last, 2 * reach), after], dim=axis))
        out.narrow(axis, out.shape[axis] - wrong, wrong).copy_(strip.narrow(axis, wrong, wrong))
    return out


def band_of_block(name: str, module: nn.Module, session: Session, build: Callable) -> nn.Module | None:
    """What stands for a block of the engine on a band, or None if `module` is none of them."""
    if isinstance(module, FusedEfficientViTBlock):
        block = BandEfficientViTBlock.of_band(module, session, name)
        replace_modules(block, build)
        return block
    for kind, (reach, factor) in REACH.items():
        if isinstance(module, kind):
            return BandBlock(module, session, name, reach, factor)
    return None
