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
from fewer.parallel.bands import cut
from fewer.parallel.convolution import ParallelMixFFN
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Session


class ParallelSana(SanaTransformer):
    """A `SanaTransformer` to its callers: full latents in, full velocity out, on every rank."""

    session: Session
    guidance_group: Group | None

    @classmethod
    def around(cls, original: SanaTransformer, plan: ParallelPlan, group: Group) -> "ParallelSana":
        """Shares the original's tensors, under the same names."""
        model = structural_copy(original)
        model.__class__ = cls
        assert isinstance(model, ParallelSana)
        ways, bands = plan.guidance_ways, plan.bands
        patches = group
        model.guidance_group = None
        if ways == 2:
            patches = group.split([range(way * bands, (way + 1) * bands) for way in range(2)])
            model.guidance_group = group.split([(rank, rank + bands) for rank in range(bands)])
        model.session = session = Session(patches, plan)

        def build(name: str, module: nn.Module) -> nn.Module | None:
            if isinstance(module, LinearAttention):
                return ParallelLinearAttention(module, session, name)
            if isinstance(module, MixFFN):
                return ParallelMixFFN(module, session, name)
            return ParallelPatchEmbed(module, session) if isinstance(module, PatchEmbed) else None

        replace_modules(model, build)
        return model

    def denoise(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: PreparedText,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        halves = self.guidance_group
        if halves is None or latents.shape[0] % 2:
            return self._denoise_bands(latents, timestep, text, guidance)
        half = latents.shape[0] // 2
        rows = torch.arange(half, device=latents.device) + halves.rank * half
        own_guidance = None if guidance is None else guidance[rows]
        own = self._denoise_bands(latents[rows], timestep[rows], text.select(rows), own_guidance)
        return halves.start_gather(own, [half, half], 0).wait()

    def _denoise_bands(
        self, latents: Tensor, timestep: Tensor, text: PreparedText, guidance: Tensor | None
    ) -> Tensor:
        session = self.session
        axis = _cut_axis(session.plan, latents)
        bands = cut(latents.shape[axis], session.group.size, self.params.patch_size)
        session.begin_step(float(timestep.flatten()[0]), bands, axis)
        rank = session.group.rank
        band = latents.narrow(axis, bands.start(rank), bands.lengths[rank])
        velocity = super().denoise(band, timestep, text, guidance)
        return session.group.start_gather(velocity, bands.lengths, axis).wait()


class ParallelPatchEmbed(nn.Module):
    """Positions are those of the whole image; the band takes its own."""

    def __init__(self, original: PatchEmbed, session: Session) -> None:
        super().__init__()
        self.proj = original.proj
        self.base, self.interpolation_scale = original.base, original.interpolation_scale
        self.session = session

    def forward(
        self, latents: Float[Tensor, "batch channels lat_h lat_w"]
    ) -> Float[Tensor, "batch tokens dim"]:
        patches = self.proj(latents)
        tokens = patches.flatten(2).transpose(1, 2)
        if self.interpolation_scale is None:
            return tokens
        session, patch = self.session, self.proj.stride[0]
        grid = [patches.shape[2], patches.shape[3]]
        grid[session.axis - 2] = session.bands.length // patch
        whole = sincos_positions(*grid, tokens.shape[-1], self.base, self.interpolation_scale, tokens.device)
        whole = whole.view(*grid, -1)
        start, length = session.band_start() // patch, patches.shape[session.axis]
        own = whole.narrow(session.axis - 2, start, length).reshape(-1, tokens.shape[-1])
        return (tokens + own).to(tokens.dtype)


def _cut_axis(plan: ParallelPlan, latents: Tensor) -> int:
    if plan.axis == "auto":
        return 3 if latents.shape[3] > latents.shape[2] else 2
    return 2 if plan.axis == "rows" else 3
