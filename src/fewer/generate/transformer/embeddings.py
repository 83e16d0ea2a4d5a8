"""What enters the blocks: patches of latents, sine-cosine positions, time, guidance and text."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

_FREQUENCIES = 256
_SLOWEST = 10000.0


class PatchEmbed(nn.Module):
    """Latents to tokens, row by row, with fixed positions added where the model has them."""

    def __init__(
        self, channels: int, width: int, patch_size: int, base: int, interpolation_scale: float | None
    ) -> None:
        super().__init__()
        self.base = base
        self.interpolation_scale = interpolation_scale
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(
        self, latents: Float[Tensor, "batch channels lat_h lat_w"]
    ) -> Float[Tensor, "batch tokens dim"]:
        patches = self.proj(latents)
        tokens = rearrange(patches, "batch dim h w -> batch (h w) dim")
        if self.interpolation_scale is None:
            return tokens
        height, width = patches.shape[-2:]
        positions = sincos_positions(
            height, width, tokens.shape[-1], self.base, self.interpolation_scale, tokens.device
        )
        # The sum is taken in fp32, and only then rounded to the network's dtype.
        return (tokens + positions).to(tokens.dtype)


def sincos_positions(
    height: int, width: int, dim: int, base: int, scale: float, device: torch.device | None = None
) -> Float[Tensor, "tokens {dim}"]:
    """Fixed 2-D positions: the COLUMN fills the first half of the channels, the row the second.

    A grid of any size spans `base / scale` units, so a larger image gets finer positions, not farther ones.
    """
    quarter = dim // 4
    omega = _SLOWEST ** (-torch.arange(quarter, device=device, dtype=torch.float64) / quarter)

    def axis(count: int) -> Tensor:
        places = torch.arange(count, device=device, dtype=torch.float32) / (count / base) / scale
        angles = torch.outer(places.double(), omega)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    columns = axis(width)[None].expand(height, -1, -1)
    rows = axis(height)[:, None].expand(-1, width, -1)
    return rearrange(torch.cat([columns, rows], dim=2), "h w dim -> (h w) dim").float()


def sinusoid(values: Float[Tensor, " batch"]) -> Float[Tensor, "batch 256"]:
    """128 cosines, then 128 sines, of geometrically spaced frequencies."""
    half = _FREQUENCIES // 2
    steps = torch.arange(half, device=values.device, dtype=torch.float32)
    angles = values[:, None].float() * torch.exp(-math.log(_SLOWEST) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ScalarEmbedding(nn.Module):
    """One number per image to one vector per image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(_FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, values: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        waves = sinusoid(values).to(self.linear_1.weight.dtype)
        return self.linear_2(silu(self.linear_1(waves)))


class TimeEmbedding(nn.Module):
    """adaLN-single: one modulation of six vectors, made from the time and shared by all blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": ScalarEmbedding(width)})
        self.linear = nn.Linear(width, 6 * width)

    def forward(
        self, timestep: Float[Tensor, " batch"], guidance: Float[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch 6 dim"], Float[Tensor, "batch dim"]]:
        """The blocks' modulation, and the embedding from which it was made (the head needs that)."""
        assert guidance is None, "this model has no guidance embedding"
        return _modulate(self.linear, self.emb["timestep_embedder"](timestep))


class GuidedTimeEmbedding(nn.Module):
    """The same with the guidance value embedded like a second time (SANA-Sprint)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = ScalarEmbedding(width)
        self.guidance_embedder = ScalarEmbedding(width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(
        self, timestep: Float[Tensor, " batch"], guidance: Float[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch 6 dim"], Float[Tensor, "batch dim"]]:
        assert guidance is not None, "this model needs a guidance value"
        return _modulate(self.linear, self.timestep_embedder(timestep) + self.guidance_embedder(guidance))


def _modulate(
    linear: nn.Module, embedding: Float[Tensor, "batch dim"]
) -> tuple[Float[Tensor, "batch 6 dim"], Float[Tensor, "batch dim"]]:
    return rearrange(linear(silu(embedding)), "batch (six dim) -> batch six dim", six=6), embedding


class TextProjection(nn.Module):
    """The text encoder's hidden states to the transformer's width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length dim"]:
        return self.linear_2(gelu(self.linear_1(text), approximate="tanh"))
