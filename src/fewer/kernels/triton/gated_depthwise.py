"""Backward of the gated depthwise convolution: a program owns all pixels of one picture, some channels each.

First the gradient of the convolution's output, from the convolution computed again, with the weights'
gradients on the way; then the transposed convolution. Neighbours come out of the first-level cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _outputs_kernel(
    grad, x, weight, bias, out, sums, pixels, width, height, channels,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.arange(0, PIXELS)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    alive = channel < channels
    inside = (pixel < pixels)[:, None] & alive[None, :]
    row, column = pixel // width, pixel % width
    both = 2 * channels
    at = x + image * pixels * both + pixel[:, None] * both + channel[None, :]
    value = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    value += tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    gate = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    gate += tl.load(bias + channels + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):  # pyright: ignore
        dy, dx = tap // 3 - 1, tap % 3 - 1
        there = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        mask = inside & there[:, None]
        step = (dy * width + dx) * both
        w_v = tl.load(weight + tap * both + channel, mask=alive, other=0.0).to(tl.float32)
        w_g = tl.load(weight + tap * both + channels + channel, mask=alive, other=0.0).to(tl.float32)
        value += tl.load(at + step, mask=mask, other=0.0).to(tl.float32) * w_v[None, :]
        gate += tl.load(at + step + channels, mask=mask, other=0.0).to(tl.float32) * w_g[None, :]
    from_above = grad + image * pixels * channels + pixel[:, None] * channels + channel[None, :]
    g = tl.load(from_above, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    g_gate = g * value * share * (1.0 + gate * (1.0 - share))
    g_value = g * gate * share
    to = out + image * pixels * both + pixel[:, None] * both + channel[None, :]
    tl.store(to, g_value.to(out.dtype.element_ty), mask=inside)
    tl.store(to + channels, g_gate.to(out.dtype.element_ty), mask=inside)
    own = sums + image * 10 * both + channel
    tl.store(own + 9 * both, tl.sum(g_value, axis=0), mask=alive)
    tl.store(own + 9 * both + channels, tl.sum(g_gate, axis=0), mask=alive)
    for tap in tl.static_range(9):  # pyright: ignore
        dy, dx = tap // 3 - 1, tap % 3 - 1
        there = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        mask = inside & there[:, None]
        step = (dy * width + dx) * both
        seen = tl.load(at + step, mask=mask, other=0.0).to(tl.float32)
        tl.store(own + tap * both, tl.sum(g_value * seen, axis=0), mask=alive)
        seen = tl.load(at + step + channels, mask=mask, other=0.0).to(tl.float32)
        tl.store(own + tap * both + channels, tl.sum(g_gate * seen, axis=0), mask=alive)


@triton.jit
def _inputs_kernel(
    g, weight, out, pixels, width, height, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.arange(0, PIXELS)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    alive = channel < channels
    inside = (pixel < pixels)[:, None] & alive[None, :]
    row, column = pixel // width, pixel % width
    place = image * pixels * channels + pixel[:, None] * channels + channel[None, :]
    total = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for tap in tl.static_range(9):  # pyright: ignore
        # The output at (row - dy, column - dx) read this pixel with this tap.
        dy, dx = tap // 3 - 1, tap % 3 - 1
        there = (row - dy >= 0) & (row - dy < height) & (column - dx >= 0) & (column - dx < width)
        w = tl.load(weight + tap * channels + channel, mask=alive, other=0.0).to(tl.float32)
        step = (dy * width + dx) * channels
        seen = tl.load(g + place - step, mask=inside & there[:, None], other=0.0).to(tl.float32)
        total += seen * w[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def launch_gated_depthwise_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, tile: tuple[int, int] = (32, 8)
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (batch, height, width, 2·channels) features, (2·channels, 1, 3, 3) weight, and bias.

    `tile`: channels and warps of a program.
    """
    features, grad = features.contiguous(), grad.contiguous()
    batch, height, width, both = features.shape
    channels, pixels = both // 2, height * width
    taps = weight.flatten(1).t().contiguous()
    middle = torch.empty_like(features)
    sums = torch.empty((batch, 10, both), dtype=torch.float32, device=features.device)
    found = torch.empty_like(features)
    if not features.numel():
        return found, torch.zeros_like(weight), torch.zeros_like(bias)
    most, warps = tile
    whole = triton.next_power_of_2(pixels)
    block = min(max(1, most * 256 // whole), triton.next_power_of_2(channels))
    shape = {"PIXELS": whole, "CHANNELS": block, "num_warps": warps}
    _outputs_kernel[(triton.cdiv(channels, block), batch)](
        grad, features, taps, bias, middle, sums, pixels, width, height, channels, **shape
    )
    _inputs_kernel[(triton.cdiv(both, block), batch)](
        middle, taps, found, pixels, width, height, both, **shape
    )
    total = sums.sum(dim=0)
    # Tensors of their own: operators must not return views of one another.
    of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    of_weight.copy_(total[:9].t().reshape(weight.shape))
    return found, of_weight, torch.empty_like(bias).copy_(total[9])
