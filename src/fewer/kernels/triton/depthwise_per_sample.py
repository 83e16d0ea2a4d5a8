"""Depthwise 3×3 with weights per sample. A program owns a strip of rows, some columns and a block of
channels; it walks down the strip, so that every row is fetched from memory once and used for three rows
of output."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _row(x, start, across, channel, row, height, width, channels, alive):
    """One row at `across`, channels last; zeros outside the picture."""
    # A line outside the picture has no columns.
    limit = tl.where((row >= 0) & (row < height), width, 0)
    inside = ((across >= 0) & (across < limit))[:, None] & alive[None, :]
    where = x + start + (row * width + across[:, None]) * channels + channel[None, :]
    return tl.load(where, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _taps(taps, channel, channels, alive, dy: tl.constexpr):
    """The three taps of one row of a sample's kernels, left to right."""
    where = taps + dy * 3 * channels + channel
    left = tl.load(where, mask=alive, other=0.0).to(tl.float32)[None, :]
    middle = tl.load(where + channels, mask=alive, other=0.0).to(tl.float32)[None, :]
    right = tl.load(where + 2 * channels, mask=alive, other=0.0).to(tl.float32)[None, :]
    return left, middle, right


@triton.jit
def _depthwise_per_sample_kernel(
    x, taps, bias, out, height, width, channels,
    ROWS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    strips = tl.cdiv(height, ROWS)
    sample = (tl.program_id(0) // strips).to(tl.int64)
    top = (tl.program_id(0) % strips) * ROWS
    across = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    alive = channel < channels
    start = sample * height * width * channels
    taps += sample * 9 * channels
    a0, b0, c0 = _taps(taps, channel, channels, alive, 0)
    a1, b1, c1 = _taps(taps, channel, channels, alive, 1)
    a2, b2, c2 = _taps(taps, channel, channels, alive, 2)
    offset = tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    above = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    here = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for step in tl.static_range(ROWS + 2):  # pyright: ignore
        row = top + step - 1
        left = _row(x, start, across - 1, channel, row, height, width, channels, alive)
        middle = _row(x, start, across, channel, row, height, width, channels, alive)
        right = _row(x, start, across + 1, channel, row, height, width, channels, alive)
        if step >= 2:
            total = above + left * a2 + middle * b2 + right * c2 + offset
            if SILU:
                total = total / (1.0 + tl.exp(-total))
            where = out + start + ((row - 1) * width + across[:, None]) * channels + channel[None, :]
            seen = (across < tl.where(row - 1 < height, width, 0))[:, None] & alive[None, :]
            tl.store(where, total.to(out.dtype.element_ty), mask=seen)
        above = here + left * a1 + middle * b1 + right * c1
        here = left * a0 + middle * b0 + right * c0


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


Tile = tuple[int, int, int, int]
"""Rows, pixels and channels of a program, and its warps."""
FORWARD_TILE: Tile = (8, 16, 64, 4)
GRADIENT_TILE: Tile = (1, 16, 32, 4)


def launch_depthwise_per_sample(
    features: Tensor, weight: Tensor, bias: Tensor, silu: bool, tile: Tile = FORWARD_TILE
) -> Tensor:
    """(batch, height, width, channels), (batch, channels, 3, 3) -> (batch, height, width, channels)."""
    features = features.contiguous()
    batch, height, width, channels = features.shape
    out = torch.empty_like(features)
    if out.numel():
        rows, pixels, block = _fitted(tile, height, width, channels)
        grid = (batch * triton.cdiv(height, rows), triton.cdiv(width, pixels), triton.cdiv(channels, block))
        # Channels last here too: nine strided gathers a thread would cost more than all of its other loads.
        taps = weight.flatten(2).transpose(1, 2).contiguous()
        _depthwise_per_sample_kernel[grid](
            features, taps, bias.contiguous(), out, height, width, channels,
            ROWS=rows, PIXELS=pixels, CHANNELS=block, SILU=silu, num_warps=tile[3],
        )  # fmt: skip
    return out


def launch_depthwise_per_sample_gradients(
    features: Tensor, gradient: Tensor, tile: Tile = GRADIENT_TILE
) -> tuple[Tensor, Tensor]:
    """Both (batch, height, width, channels) -> (batch, channels, 3, 3) and (batch, channels), in fp32."""
    features, gradient = features.contiguous(), gradient.contiguous()
    batch, height, width, channels = features.shape
    to_weight = features.new_zeros(batch, channels, 3, 3, dtype=torch.float32)
    to_bias = features.new_zeros(batch, channels, dtype=torch.float32)
    if features.numel():
        _, pixels, block = _fitted(tile, height, width, channels)
        _depthwise_per_sample_gradients_kernel[(batch, triton.cdiv(channels, block))](
            features, gradient, to_weight, to_bias, height, width, channels,
            PIXELS=pixels, CHANNELS=block, num_warps=tile[3],
        )  # fmt: skip
    return to_weight, to_bias


def _fitted(tile: Tile, height: int, width: int, channels: int) -> tuple[int, int, int]:
    """A program is never larger than the picture."""
    sides = zip(tile[:3], (height, width, channels), strict=True)
    rows, pixels, block = (min(wanted, triton.next_power_of_2(there)) for wanted, there in sides)
    return rows, pixels, block
