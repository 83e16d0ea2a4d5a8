"""Depthwise 3×3 with weights per sample: a program owns some pixels of a row and a block of channels."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _depthwise_per_sample_kernel(
    x, weight, bias, out, height, width, channels,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)  # batch · height
    across = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    y = line % height
    kernels = weight + (line // height) * channels * 9
    alive = channel < channels
    total = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for dy in tl.static_range(3):  # pyright: ignore
        for dx in tl.static_range(3):  # pyright: ignore
            column = across + dx - 1
            row = y + dy - 1
            # A line outside the picture has no columns.
            limit = tl.where((row >= 0) & (row < height), width, 0)
            inside = ((column >= 0) & (column < limit))[:, None] & alive[None, :]
            where = x + ((line + dy - 1) * width + column[:, None]) * channels + channel[None, :]
            value = tl.load(where, mask=inside, other=0.0).to(tl.float32)
            # Masked values are zeros, but 0 · NaN is NaN: a sample's bad weights stay its own anyway.
            tap = tl.load(kernels + channel * 9 + dy * 3 + dx, mask=alive, other=0.0).to(tl.float32)
            total += value * tap[None, :]
    total += tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    where = out + (line * width + across[:, None]) * channels + channel[None, :]
    tl.store(where, total.to(out.dtype.element_ty), mask=(across < width)[:, None] & alive[None, :])


def launch_depthwise_per_sample(features: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """(batch, height, width, channels), (batch, channels, 3, 3) -> (batch, height, width, channels)."""
    features = features.contiguous()
    batch, height, width, channels = features.shape
    out = torch.empty_like(features)
    if out.numel():
        pixels, block = 8, min(128, triton.next_power_of_2(channels))
        grid = (batch * height, triton.cdiv(width, pixels), triton.cdiv(channels, block))
        _depthwise_per_sample_kernel[grid](
            features, weight.contiguous(), bias.contiguous(), out, height, width, channels,
            PIXELS=pixels, CHANNELS=block, SILU=silu,
        )  # fmt: skip
    return out
