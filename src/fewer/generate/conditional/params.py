"""The shape of a class-conditional transformer, our presets, and the shapes that others published."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.errors import ConfigError

Count = Annotated[int, Field(ge=1, le=65536)]
MOST_BLOCKS = 512
MOST_TOKENS = 2**18
Architecture = Literal["dit", "u-vit", "cat"]
Conditioning = Literal["tokens", "adaln", "can", "aks", "adaln+can"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassConditionalParams:
    """Everything that decides which static tensors a class-conditional transformer has."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    architecture: Architecture = "cat"
    channels: Count = 3
    out_channels: Count = 3
    size: Count = 32
    """Side of the pictures or latents."""
    patch: Annotated[int, Field(ge=1, le=64)] = 2
    width: Count = 192
    depth: Annotated[int, Field(ge=1, le=MOST_BLOCKS)] = 8
    heads: Count = 6
    ffn_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    classes: Count = 10
    """Label number `classes` stands for "no class", for guidance."""
    adaln: bool = False
    """Features are modulated by the condition (DiT's adaLN-zero; also in CaT)."""
    tokens: bool = True
    """Time and class stand before the image tokens (U-ViT always; DiT and CaT at will)."""
    time_mlp: bool = True
    """u-vit: two linear layers behind the waves of the time; the published ImageNet models have none."""
    depthwise: bool = True
    """A depthwise 3x3 convolution between the two linear layers of each feed-forward."""

    def check(self) -> "ClassConditionalParams":
        """Returns itself. Raises `ConfigError` where two fields contradict each other."""
        if self.size % self.patch:
            raise ConfigError(f"size {self.size} does not divide into patches of {self.patch}")
        tokens = (self.size // self.patch) ** 2
        if tokens > MOST_TOKENS:
            raise ConfigError(
                f"size {self.size} in patches of {self.patch} makes {tokens:,} tokens; "
                f"at most {MOST_TOKENS:,} are allowed, so take larger patches"
            )
        if int(self.ffn_ratio * self.width) < 1:
            raise ConfigError(f"ffn_ratio {self.ffn_ratio} of width {self.width} leaves no hidden channel")
        if self.width % self.heads or self.width % 4:
            raise ConfigError(
                f"width {self.width} must divide by 4 and into {self.heads} heads; try 64 per head"
            )
        if self.architecture == "u-vit" and (self.adaln or not self.tokens or self.depth % 2 == 0):
            raise ConfigError("u-vit takes time and class as tokens, no adaln, and an odd depth")
        if not (self.adaln or self.tokens) and self.architecture != "dit":
            raise ConfigError("without adaln and tokens nothing tells the network time and class")
        return self


def with_conditioning(params: ClassConditionalParams, kind: Conditioning) -> ClassConditionalParams:
    """The same network told its condition in another way; `can` and `aks` keep the tokens."""
    return replace(params, adaln=kind.startswith("adaln"), tokens=not kind.startswith("adaln"))


def _cat(depth: int, width: int) -> ClassConditionalParams:
    return ClassConditionalParams(architecture="cat", depth=depth, width=width, heads=width // 32)


PRESETS: dict[str, ClassConditionalParams] = {
    "cat-nano": _cat(8, 192),
    "cat-tiny": _cat(12, 384),
    "cat-small": _cat(16, 512),
    "cat-base": _cat(24, 768),
}
"""Sizes of CaT; ours, for the paper's list of depths and widths is not public."""


def _dit(depth: int, width: int, heads: int, patch: int) -> ClassConditionalParams:
    return ClassConditionalParams(
        architecture="dit", channels=4, out_channels=8, size=32, patch=patch, width=width, depth=depth,
        heads=heads, classes=1000, adaln=True, tokens=False, depthwise=False,
    )  # fmt: skip


def _u_vit(depth: int, width: int, heads: int) -> ClassConditionalParams:
    return ClassConditionalParams(
        architecture="u-vit", channels=4, out_channels=4, size=32, patch=2, width=width, depth=depth,
        heads=heads, classes=1000, depthwise=False, time_mlp=False,
    )  # fmt: skip


PUBLISHED: dict[str, ClassConditionalParams] = {
    "dit-s-2": _dit(12, 384, 6, 2),
    "dit-b-2": _dit(12, 768, 12, 2),
    "dit-l-2": _dit(24, 1024, 16, 2),
    "dit-xl-2": _dit(28, 1152, 16, 2),
    "u-vit-s-2": _u_vit(13, 512, 8),
    "u-vit-l-2": _u_vit(21, 1024, 16),
    "u-vit-h-2": _u_vit(29, 1152, 16),
}
"""Shapes of DiT (arXiv 2212.09748, table 1) and U-ViT (arXiv 2209.12152), without a depthwise convolution."""


def named(name: str) -> ClassConditionalParams:
    """A preset or a published shape. Raises `ConfigError` naming what is known."""
    known = PRESETS | PUBLISHED
    if name not in known:
        raise ConfigError(f"no class-conditional transformer is called {name!r}; known: {', '.join(known)}")
    return known[name]
