"""The shape of a Sana transformer, and the shapes that have been published."""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import ConfigDict, Field

from fewer.core.errors import ConfigError

Count = Annotated[int, Field(ge=1, le=65536)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SanaParams:
    """Everything that decides which tensors a Sana transformer has. The defaults are Sana-1.6B at 1024 px."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    in_channels: Count = 32
    """Channels of the latents."""
    out_channels: Count = 32
    """Channels of the velocity."""
    heads: Count = 70
    """Heads of the linear self-attention; the width is `heads * head_dim`."""
    head_dim: Count = 32
    depth: Count = 20
    """Number of blocks."""
    cross_heads: Count = 20
    """Heads of the cross-attention to the text."""
    cross_head_dim: Count = 112
    caption_channels: Count = 2304
    """Width of the text encoder's hidden states (Gemma-2-2b 2304, SmolLM2-135M 576)."""
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 2.5
    """Hidden width of the Mix-FFN, in widths."""
    sample_size: Count = 32
    """Side of the latents it was trained on: 16, 32, 64, 128 for 512, 1024, 2048, 4096 px at 32x."""
    patch_size: Annotated[int, Field(ge=1, le=64)] = 1
    interpolation_scale: Annotated[float, Field(gt=0)] | None = None
    """Adds fixed sine-cosine positions; 1.0 in the 2K model, 2.0 in the 4K model, none in the others."""
    guidance_embeds: bool = False
    """Takes the guidance value as a second time-like embedding (Sprint)."""
    guidance_embeds_scale: float = 0.1
    qk_norm: bool = False
    """RMS norm across all heads on queries and keys of both attentions (SANA-1.5, Sprint)."""
    attention_bias: bool = False
    """Biases on the queries, keys and values of the self-attention; no published model has them."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    timestep_scale: float = 1.0
    """Factor from the schedule's 0..1000 to what the network reads; the pipeline applies it."""

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_dim

    def check(self) -> "SanaParams":
        """Returns itself. Raises `ConfigError` where two fields contradict each other."""
        if self.interpolation_scale is not None and self.width % 4:
            raise ConfigError(f"sine-cosine positions need a width divisible by 4, not {self.width}")
        if self.sample_size % self.patch_size:
            raise ConfigError(
                f"sample_size {self.sample_size} is not divisible by patch_size {self.patch_size}"
            )
        return self


_BIG = SanaParams()
_SMALL = SanaParams(heads=36, depth=28, cross_heads=16, cross_head_dim=72)

PUBLISHED: dict[str, SanaParams] = {
    "sana-0.6b-512": replace(_SMALL, sample_size=16),
    "sana-0.6b-1024": _SMALL,
    "sana-1.6b-512": replace(_BIG, sample_size=16),
    "sana-1.6b-1024": _BIG,
    "sana-1.6b-2048": replace(_BIG, sample_size=64, interpolation_scale=1.0),
    "sana-1.6b-4096": replace(_BIG, sample_size=128, interpolation_scale=2.0),
    "sana-1.5-1.6b-1024": replace(_BIG, qk_norm=True),
    "sana-1.5-4.8b-1024": replace(_BIG, qk_norm=True, depth=60),
    "sprint-0.6b-1024": replace(_SMALL, qk_norm=True, guidance_embeds=True),
    "sprint-1.6b-1024": replace(_BIG, qk_norm=True, guidance_embeds=True),
}
"""The published checkpoints' shapes, by name (spec tables of arXiv 2410.10629, 2501.18427, 2503.09641)."""


def published(name: str) -> SanaParams:
    """The shape of a published checkpoint. Raises `ConfigError` naming what is known."""
    if name not in PUBLISHED:
        raise ConfigError(f"no published Sana is called {name!r}; known: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
