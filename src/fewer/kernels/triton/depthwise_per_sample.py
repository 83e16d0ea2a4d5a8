"""Depthwise 3×3 with weights per sample. A program owns a strip of rows, some columns and a block of
channels; it walks down the strip, so that every row is fetched from memory once and used for three rows
of output."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.gates import silu
from fewer.kernels.triton.taps import columns, filled, row_of_taps, weights


@triton.jit
def _row(x, start, across, channel, row, height, width, channels, alive):
    """One row at `across`, channels last; zeros outside the picture."""
    # A line outside the picture has no columns.
    limit = tl.where((row >= 0) & (row < height), width, 0)
    inside = ((across >= 0) & (across < limit))[:, None] & alive[None, :]
    where = x + start + (row * width + across[:, None]) * channels + channel[None, :]
    return tl.load(where, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _depthwise_per_sample_kernel(
    x, taps, bias, out, height, width, channels,
    LINES: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    strips = tl.cdiv(height, LINES)
    sample, top = (tl.program_id(2) // strips).to(tl.int64), (tl.program_id(2) % strips) * LINES
    first = (tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)) * EACH
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    alive = channel < channels
    w = weights(taps + (sample * channels + channel) * 9, 1, alive)
    zero = tl.zeros((GROUPS, CHANNELS), dtype=tl.float32)
    start = filled(zero + tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :], EACH)
    # Sums of the line above the one that is read, and of that line itself.
    above, here = start, start
    for index in range(LINES + 2):
        y = top + index - 1
        # A line outside the picture has no pixels.
        limit = tl.where((y >= 0) & (y < height), width, 0)
        at = x + (sample * height + y) * width * channels + channel[None, :]
        line = columns(at, first, channels, limit, alive, EACH, False, FAST)
        total = row_of_taps(above, line, w, EACH, 2)
        done = y - 1
        limit = tl.where((index >= 2) & (done < height), width, 0)
        to = out + (sample * height + done) * width * channels + channel[None, :]
        for place in tl.static_range(EACH):  # pyright: ignore
            pixel, result = first + place, total[place]
            if SILU:
                result = silu(result, FAST)
            inside = (pixel < limit)[:, None] & alive[None, :]
            tl.store(to + pixel[:, None] * channels, result.to(out.dtype.element_ty), mask=inside)
        above, here = row_of_taps(here, line, w, EACH, 1), row_of_taps(start, line, w, EACH, 0)


@triton.jit
def _depthwise_per_sample_gradients_kernel(
    x, gradient, to_weight, to_bias, height, width, channels,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    alive = channel < channels
    start = sample * height * width * channels
    nothing = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    a0, b0, c0, a1, b1, c1, a2, b2, c2 = (
        nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing,
    )  # fmt: skip
    whole = nothing
    for first in range(0, width, PIXELS):
        across = first + tl.arange(0, PIXELS)
        above = nothing
        # Zeros beyond the right edge: what the neighbours hold there counts for nothing.
        here = _row(gradient, start, across, channel, 0, height, width, channels, alive)
        for row in range(height):
            below = _row(gradient, start, across, channel, row + 1, height, width, channels, alive)
            left = _row(x, start, across - 1, channel, row, height, width, channels, alive)
            middle = _row(x, start, across, channel, row, height, width, channels, alive)
            right = _row(x, start, across + 1, channel, row, height, width, channels, alive)
            whole += here
            a0 += below * left
            b0 += below * middle
            c0 += below * right
            a1 += here * left
            b1 += here * middle
            c1 += here * right
            a2 += above * left
            b2 += above * middle
            c2 += above * right
            above = here
            here = below
    where = to_weight + (sample * channels + channel) * 9
    tl.store(where, tl.sum(a0, 0), mask=alive)
    tl.store(where + 1, tl.sum(b0, 0), mask=alive)
    tl.store(where + 2, tl.sum(c0, 0), mask=alive)
    tl.store(where + 3, tl.sum(a1, 0), mask=alive)
    tl.store(where + 4, tl.sum(b1, 0), mask=alive)
    tl.store(where + 5, tl.sum(c1, 0), mask=alive)
    tl.store(where + 6, tl.sum(a2, 0), mask=alive)
    tl.store(where + 7, tl.sum(b2, 0), mask=alive)
    tl.store(where + 8, tl.sum(c2, 0), mask=alive)
    tl.store(to_bias + sample * channels + channel, tl.sum(whole, 0), mask=alive)


Tile = tuple[int, int, int, int, int]
"""Lines, groups of pixels, pixels in a group and channels of a program, and its warps."""
FORWARD_TILE: Tile = (16, 4, 4, 64, 2)
GradientTile = tuple[int, int, int]
"""Pixels and channels of a program, and its warps."""
GRADIENT_TILE: GradientTile = (16, 32, 4)


def launch_depthwise_per_sample(
    features: Tensor, weight: Tensor, bias: Tensor, activated: bool, tile: Tile = FORWARD_TILE
) -> Tensor:
    """(batch, height, width, channels), (batch, channels, 3, 3) -> (batch, height, width, channels)."""
    features = features.contiguous()
    batch, height, width, channels = features.shape
    out = torch.empty_like(features)
    if out.numel():
        lines, groups, each, block, warps = tile
        lines, groups = min(lines, height), min(groups, triton.next_power_of_2(triton.cdiv(width, each)))
        block = min(block, triton.next_power_of_2(channels))
        grid = (
            triton.cdiv(channels, block), triton.cdiv(width, groups * each),
            batch * triton.cdiv(height, lines),
        )  # fmt: skip
        _depthwise_per_sample_kernel[grid](
            features, weight.contiguous(), bias.contiguous(), out, height, width, channels,
            LINES=lines, GROUPS=groups, EACH=each, CHANNELS=block, SILU=activated,
            FAST=features.is_cuda and features.dtype.itemsize == 2, num_warps=warps,
        )  # fmt: skip
    return out


def launch_depthwise_per_sample_gradients(
    features: Tensor, gradient: Tensor, tile: GradientTile = GRADIENT_TILE
) -> tuple[Tensor, Tensor]:
    """Both (batch, height, width, channels) -> (batch, channels, 3, 3) and (batch, channels), in fp32."""
    features, gradient = features.contiguous(), gradient.contiguous()
    batch, height, width, channels = features.shape
    to_weight = features.new_zeros(batch, channels, 3, 3, dtype=torch.float32)
    to_bias = features.new_zeros(batch, channels, dtype=torch.float32)
    if features.numel():
        pixels = min(tile[0], triton.next_power_of_2(width))
        block = min(tile[1], triton.next_power_of_2(channels))
        _depthwise_per_sample_gradients_kernel[(batch, triton.cdiv(channels, block))](
            features, gradient, to_weight, to_bias, height, width, channels,
            PIXELS=pixels, CHANNELS=block, num_warps=tile[2],
        )  # fmt: skip
    return to_weight, to_bias
