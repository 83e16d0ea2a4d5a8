"""The bricks of DC-AE: channel shortcuts, residual blocks, and linear attention with its gated convolution.

Tensors are (batch, channels, height, width). Channel order around a change of resolution is that of
`pixel_unshuffle`: new channel = 4 * old + 2 * dy + dx. Attribute names are diffusers' tensor names.
"""

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-5
ATTENTION_EPSILON = 1e-15

Image = Float[Tensor, "batch channels height width"]


def average_channels(x: Image, channels: int) -> Float[Tensor, "batch channels_out height width"]:
    """Mean over consecutive groups of channels, so that `channels` remain (spec §2.1)."""
    return rearrange(x, "b (c g) h w -> b c g h w", c=channels).mean(2)


def repeat_channels(x: Image, channels: int) -> Float[Tensor, "batch channels_out height width"]:
    """Each channel repeated in place, until there are `channels`."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


def down_shortcut(x: Image, channels: int) -> Float[Tensor, "batch channels_out half_h half_w"]:
    """Space to channel without parameters: pixel unshuffle, then averaged to `channels`."""
    return average_channels(functional.pixel_unshuffle(x, 2), channels)


def up_shortcut(x: Image, channels: int) -> Float[Tensor, "batch channels_out double_h double_w"]:
    """Channel to space without parameters: repeated to 4 * `channels`, then pixel shuffle."""
    return functional.pixel_shuffle(repeat_channels(x, 4 * channels), 2)


class ChannelRMSNorm(nn.Module):
    """RMS over the channels of each pixel, in fp32 or better, with weight AND bias (`trms2d`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Image) -> Image:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(wide.square().mean(1, keepdim=True) + EPSILON)
        weight, bias = (vector[:, None, None].to(wide.dtype) for vector in (self.weight, self.bias))
        return torch.addcmul(bias, wide * inverse, weight).to(x.dtype)


def build_norm(kind: str, channels: int) -> nn.Module:
    """`rms_norm` or `batch_norm`."""
    return ChannelRMSNorm(channels) if kind == "rms_norm" else nn.BatchNorm2d(channels, eps=EPSILON)


def activation(kind: str) -> Callable[[Tensor], Tensor]:
    """`relu` or `silu`."""
    return functional.relu if kind == "relu" else functional.silu


class ResBlock(nn.Module):
    """x + norm(conv(act(conv(x)))): the norm stands after the second convolution, before the sum."""

    def __init__(self, channels: int, norm: str = "rms_norm", act: str = "silu") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = build_norm(norm, channels)
        self.act = activation(act)

    def forward(self, x: Image) -> Image:
        return x + self.norm(self.conv2(self.act(self.conv1(x))))


class MultiscaleProjection(nn.Module):
    """Neighbourhood aggregation of q, k and v: depthwise `scale` x `scale`, then 1x1 within a head."""

    def __init__(self, channels: int, heads: int, scale: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(channels, channels, scale, padding=scale // 2, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=3 * heads, bias=False)

    def forward(self, qkv: Image) -> Image:
        return self.proj_out(self.proj_in(qkv))


Head = Float[Tensor, "batch groups head_dim tokens"]
Summary = Float[Tensor, "batch groups head_dim_and_one head_dim"]


class LinearAttention(nn.Module):
    """ReLU linear attention: time and memory grow linearly with the number of pixels.

    Trap of the published format: `to_q`, `to_k`, `to_v` are thirds of ONE projection, whose output is
    then grouped in runs of 3 * head_dim channels (q, k, v of one head). They do not hold q, k and v.
    `project`, `summarize` and `read` are apart so that tiling can stream the picture through them.
    """

    def __init__(self, channels: int, head_dim: int, scales: tuple[int, ...], norm: str) -> None:
        super().__init__()
        heads = channels // head_dim
        inner = heads * head_dim
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(
            MultiscaleProjection(3 * inner, heads, scale) for scale in scales
        )
        self.to_out = nn.Linear(inner * (1 + len(scales)), channels, bias=False)
        self.norm_out = build_norm(norm, channels)

    def forward(self, x: Image) -> Image:
        query, key, value = self.split_heads(self.project(x))
        attended = self.read(query, self.summarize(key, value))
        return self.finish(attended, x.shape[2], x.dtype)

    def project(self, x: Image) -> Float[Tensor, "batch qkv height width"]:
        """The joint projection and its multi-scale branches, side by side."""
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        qkv = functional.conv2d(x, weight[:, :, None, None])
        return torch.cat([qkv, *(projection(qkv) for projection in self.to_qkv_multiscale)], dim=1)

    def split_heads(self, qkv: Float[Tensor, "batch qkv height width"]) -> tuple[Head, Head, Head]:
        """Queries and keys (after ReLU) and values of every head and scale, in fp32 or better."""
        qkv = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        query, key, value = rearrange(qkv, "b (g three d) h w -> three b g d (h w)", three=3, d=self.head_dim)
        return query.relu(), key.relu(), value

    def summarize(self, key: Head, value: Head) -> Summary:
        """Sum over pixels of [v; 1] k^T; the row of ones gives the normaliser."""
        return functional.pad(value, (0, 0, 0, 1), value=1.0) @ key.transpose(-1, -2)

    def read(self, query: Head, summary: Summary) -> Head:
        """What each query reads; a zero denominator gives zero."""
        out = summary @ query
        return out[:, :, :-1] / (out[:, :, -1:] + ATTENTION_EPSILON)

    def finish(self, attended: Head, height: int, dtype: torch.dtype) -> Image:
        """Heads back to channels, output projection and norm (the residual is the block's)."""
        merged = rearrange(attended, "b g d (h w) -> b (g d) h w", h=height).to(dtype)
        return self.norm_out(functional.conv2d(merged, self.to_out.weight[:, :, None, None]))


class GLUMBConv(nn.Module):
    """Gated inverted bottleneck: 1x1 to 8C, SiLU, depthwise 3x3, value * SiLU(gate), 1x1 back, RMS norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_inverted = nn.Conv2d(channels, 8 * channels, 1)
        self.conv_depth = nn.Conv2d(8 * channels, 8 * channels, 3, padding=1, groups=8 * channels)
        self.conv_point = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.norm = ChannelRMSNorm(channels)

    def forward(self, x: Image) -> Image:
        value, gate = self.conv_depth(functional.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return self.norm(self.conv_point(value * functional.silu(gate)))


class EfficientViTBlock(nn.Module):
    """Global context by linear attention, then local context by `GLUMBConv`, each with its residual."""

    def __init__(self, channels: int, head_dim: int, scales: tuple[int, ...], norm: str = "rms_norm") -> None:
        super().__init__()
        self.attn = LinearAttention(channels, head_dim, scales, norm)
        self.conv_out = GLUMBConv(channels)

    def forward(self, x: Image) -> Image:
        x = x + self.attn(x)
        return x + self.conv_out(x)


class DownBlock(nn.Module):
    """Half the resolution: a convolution, plus the averaging shortcut unless it is the first layer."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kind: Literal["pixel_unshuffle", "conv"],
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.kind, self.shortcut, self.out_channels = kind, shortcut, out_channels
        unshuffle = kind == "pixel_unshuffle"
        self.conv = nn.Conv2d(
            channels,
            out_channels // 4 if unshuffle else out_channels,
            3,
            stride=1 if unshuffle else 2,
            padding=1,
        )

    def forward(self, x: Image) -> Float[Tensor, "batch channels_out half_h half_w"]:
        main = self.conv(x)
        if self.kind == "pixel_unshuffle":
            main = functional.pixel_unshuffle(main, 2)
        return main + down_shortcut(x, self.out_channels) if self.shortcut else main


class UpBlock(nn.Module):
    """Double the resolution: a convolution, plus the repeating shortcut unless it is the last layer."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kind: Literal["pixel_shuffle", "interpolate"],
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.kind, self.shortcut, self.out_channels = kind, shortcut, out_channels
        self.conv = nn.Conv2d(
            channels, out_channels if kind == "interpolate" else 4 * out_channels, 3, padding=1
        )

    def forward(self, x: Image) -> Float[Tensor, "batch channels_out double_h double_w"]:
        if self.kind == "interpolate":
            main = self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
        else:
            main = functional.pixel_shuffle(self.conv(x), 2)
        return main + up_shortcut(x, self.out_channels) if self.shortcut else main
