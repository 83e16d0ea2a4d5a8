"""Depthwise 3×3 with gate: a program owns some pixels of a row and a block of channels of both halves."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _depthwise_gated_kernel(
    x, weight, bias, out, height, width, channels,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PRE_SILU: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)  # batch · height
    across = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    y = line % height
    alive = channel < channels
    value = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    gate = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for dy in tl.static_range(3):  # pyright: ignore
        for dx in tl.static_range(3):  # pyright: ignore
            column = across + dx - 1
            row = y + dy - 1
            # A line outside the picture has no columns.
            limit = tl.where((row >= 0) & (row < height), width, 0)
            seen = (column >= 0) & (column < limit)
            inside = seen[:, None] & alive[None, :]
            where = x + ((line + dy - 1) * width + column[:, None]) * (2 * channels) + channel[None, :]
            a = tl.load(where, mask=inside, other=0.0).to(tl.float32)
            b = tl.load(where + channels, mask=inside, other=0.0).to(tl.float32)
            if PRE_SILU:
                a = a / (1.0 + tl.exp(-a))
                b = b / (1.0 + tl.exp(-b))
            tap = dy * 3 + dx
            value += a * tl.load(weight + channel * 9 + tap, mask=alive, other=0.0).to(tl.float32)[None, :]
            other = weight + (channel + channels) * 9 + tap
            gate += b * tl.load(other, mask=alive, other=0.0).to(tl.float32)[None, :]
    value += tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias + channels + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    result = value * gate / (1.0 + tl.exp(-gate))
    where = out + (line * width + across[:, None]) * channels + channel[None, :]
    tl.store(where, result.to(out.dtype.element_ty), mask=(across < width)[:, None] & alive[None, :])


def launch_depthwise_gated(features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool) -> Tensor:
    """(batch, height, width, 2·channels) -> (batch, height, width, channels)."""
    features = features.contiguous()
    batch, height, width, both = features.shape
    channels = both // 2
    out = torch.empty((batch, height, width, channels), dtype=features.dtype, device=features.device)
    if out.numel():
        pixels, block = 8, min(128, triton.next_power_of_2(channels))
        grid = (batch * height, triton.cdiv(width, pixels), triton.cdiv(channels, block))
        _depthwise_gated_kernel[grid](
            features, weight.contiguous(), bias.contiguous(), out, height, width, channels,
            PIXELS=pixels, CHANNELS=block, PRE_SILU=pre_silu,
        )  # fmt: skip
    return out
