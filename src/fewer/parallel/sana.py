"""Sana on several devices: row (or column) bands, one all-reduce and one exchange of border rows a block.

Exact in `sync` mode for any number of devices and any size (distrifusion §2.2). Cross-attention is local;
the guidance halves may live on different devices.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewer.core.modules import replace_modules
from fewer.generate.transformer.attention import LinearAttention
from fewer.generate.transformer.embeddings import PatchEmbed, sincos_positions
from fewer.generate.transformer.feed_forward import MixFFN
from fewer.generate.transformer.prepared_text import PreparedText
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.attach import structural_copy
from fewer.parallel.attention import ParallelLinearAttention
from fewer.parallel.convolution import ParallelMixFFN
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Session
from fewer.parallel.spread import Spread


class ParallelSana(SanaTransformer):
    """A `SanaTransformer` to its callers: full latents in, full velocity out, on every rank."""

    spread: Spread

    @classmethod
    def around(cls, original: SanaTransformer, plan: ParallelPlan, group: Group) -> "ParallelSana":
        """Shares the original's tensors, under the same names."""
        model = structural_copy(original)
        model.__class__ = cls
        assert isinstance(model, ParallelSana)
        model.spread = Spread(plan, group, original.params)
        replace_layers(model, model.spread.session)
        return model

    @property
    def session(self) -> Session:
        """Which step, which band, and what the others said."""
        return self.spread.session

    def denoise(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: PreparedText,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        spread, samples = self.spread, latents.shape[0]
        latents, timestep, text, guidance = spread.enter(latents, timestep, text, guidance)
        velocity = super().denoise(spread.own_band(latents), timestep, text, guidance)
        spread.session.end_step()
        return spread.join_halves(spread.join_bands(velocity), samples)

    def _embed_time(
        self, timestep: Shaped[Tensor, " batch"], guidance: Float[Tensor, " batch"] | None
    ) -> tuple[Float[Tensor, "batch 6 dim"], Float[Tensor, "batch dim"]]:
        return self.spread.embedded(super()._embed_time, timestep, guidance)


def replace_layers(model: nn.Module, session: Session, prefix: str = "") -> None:
    """Puts band layers in place of what looks beyond a token, in a tree that nobody else holds.

    A single device keeps its own layers, and with them its bits.
    """

    def build(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, PatchEmbed):
            return ParallelPatchEmbed(module, session)
        if session.group.size == 1:
            return None
        if isinstance(module, LinearAttention):
            return ParallelLinearAttention(module, session, prefix + name)
        return ParallelMixFFN(module, session, prefix + name) if isinstance(module, MixFFN) else None

    replace_modules(model, build)


class ParallelPatchEmbed(nn.Module):
    """Positions are those of the whole image; the band takes its own."""

    def __init__(self, original: PatchEmbed, session: Session) -> None:
        super().__init__()
        self.proj = original.proj
        self.base, self.interpolation_scale = original.base, original.interpolation_scale
        self.session = session
        self._positions: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(
        self, latents: Float[Tensor, "batch channels lat_h lat_w"]
    ) -> Float[Tensor, "batch tokens dim"]:
        patches = self.proj(latents)
        grid = (patches.shape[2], patches.shape[3])
        return self.with_positions(
            patches.flatten(2).transpose(1, 2), grid, latents.shape[2] // patches.shape[2]
        )

    def with_positions(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: tuple[int, int], patch: int
    ) -> Float[Tensor, "batch tokens dim"]:
        """A band's tokens, `grid` rows and columns of them, with their positions in the whole image."""
        if self.interpolation_scale is None:
            return tokens
        session = self.session
        whole_grid = list(grid)
        whole_grid[session.axis - 2] = session.bands.length // patch
        place = (*whole_grid, tokens.device)
        if place not in self._positions:
            with torch.inference_mode(False):
                self._positions[place] = sincos_positions(
                    *whole_grid, tokens.shape[-1], self.base, self.interpolation_scale, tokens.device
                ).view(*whole_grid, -1)
        start, length = session.band_start() // patch, grid[session.axis - 2]
        own = self._positions[place].narrow(session.axis - 2, start, length).reshape(-1, tokens.shape[-1])
        return (tokens + own).to(tokens.dtype)
