"""Backward of the gated depthwise convolution: a program owns all pixels of one picture, some channels each.

One kernel, so that what lies between its stages stays in the second-level cache: the features after their
SiLU, if there is one; then the gradient of the convolution's output, from the convolution computed again,
with the weights' gradients on the way; then the transposed convolution. Each stage reads what other threads
of the same program wrote to the result's own memory, behind a barrier, and the last one overwrites it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.gates import silu


@triton.jit
def _tap(base, place, tap, sign: tl.constexpr, row, column, width, height, step, inside):
    """The values that a tap of the 3x3 window sees (sign 1), or whose window saw this pixel with it (-1)."""
    dy, dx = sign * (tap // 3 - 1), sign * (tap % 3 - 1)
    there = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
    where = base + place + (dy * width + dx) * step
    return tl.load(where, mask=inside & there[:, None], other=0.0).to(tl.float32)


@triton.jit
def _slope(x):
    """Derivative of SiLU."""
    share = 1.0 / (1.0 + tl.exp(-x))
    return share * (1.0 + x * (1.0 - share))


@triton.jit
def _gradients_kernel(
    grad, x, weight, bias, found, sums, pixels, width, height, channels,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PRE_SILU: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.arange(0, PIXELS)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    alive = channel < channels
    inside = (pixel < pixels)[:, None] & alive[None, :]
    row, column = pixel // width, pixel % width
    both = 2 * channels
    place = image * pixels * both + pixel[:, None] * both + channel[None, :]
    kind = found.dtype.element_ty
    seen = x
    if PRE_SILU:
        raw_v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        raw_g = tl.load(x + place + channels, mask=inside, other=0.0).to(tl.float32)
        tl.store(found + place, silu(raw_v, FAST).to(kind), mask=inside)
        tl.store(found + place + channels, silu(raw_g, FAST).to(kind), mask=inside)
        tl.debug_barrier()
        seen = found
    value = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    value += tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    gate = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    gate += tl.load(bias + channels + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    for tap in range(9):
        w_v = tl.load(weight + tap * both + channel, mask=alive, other=0.0).to(tl.float32)
        w_g = tl.load(weight + tap * both + channels + channel, mask=alive, other=0.0).to(tl.float32)
        value += _tap(seen, place, tap, 1, row, column, width, height, both, inside) * w_v[None, :]
        gate += _tap(seen, place + channels, tap, 1, row, column, width, height, both, inside) * w_g[None, :]
    from_above = grad + image * pixels * channels + pixel[:, None] * channels + channel[None, :]
    g = tl.load(from_above, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    g_gate = g * value * share * (1.0 + gate * (1.0 - share))
    g_value = g * gate * share
    own = sums + image * 10 * both + channel
    tl.store(own + 9 * both, tl.sum(g_value, axis=0), mask=alive)
    tl.store(own + 9 * both + channels, tl.sum(g_gate, axis=0), mask=alive)
    for tap in range(9):
        at_v = _tap(seen, place, tap, 1, row, column, width, height, both, inside)
        tl.store(own + tap * both, tl.sum(g_value * at_v, axis=0), mask=alive)
        at_g = _tap(seen, place + channels, tap, 1, row, column, width, height, both, inside)
        tl.store(own + tap * both + channels, tl.sum(g_gate * at_g, axis=0), mask=alive)
    tl.debug_barrier()
    tl.store(found + place, g_value.to(kind), mask=inside)
    tl.store(found + place + channels, g_gate.to(kind), mask=inside)
    tl.debug_barrier()
    back_v = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    back_g = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for tap in range(9):
        w_v = tl.load(weight + tap * both + channel, mask=alive, other=0.0).to(tl.float32)
        w_g = tl.load(weight + tap * both + channels + channel, mask=alive, other=0.0).to(tl.float32)
        back_v += _tap(found, place, tap, -1, row, column, width, height, both, inside) * w_v[None, :]
        back_g += (
            _tap(found, place + channels, tap, -1, row, column, width, height, both, inside) * w_g[None, :]
        )
    tl.debug_barrier()
    if PRE_SILU:
        back_v *= _slope(tl.load(x + place, mask=inside, other=0.0).to(tl.float32))
        back_g *= _slope(tl.load(x + place + channels, mask=inside, other=0.0).to(tl.float32))
    tl.store(found + place, back_v.to(kind), mask=inside)
    tl.store(found + place + channels, back_g.to(kind), mask=inside)


def launch_gated_depthwise_backward(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    pre_silu: bool = False,
    tile: tuple[int, int] = (16, 8),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (batch, height, width, 2·channels) features, (2·channels, 1, 3, 3) weight, and bias.

    `tile`: channels and warps of a program.
    """
    features, grad = features.contiguous(), grad.contiguous()
    batch, height, width, both = features.shape
    channels, pixels = both // 2, height * width
    taps = weight.flatten(1).t().contiguous()
    sums = torch.empty((batch, 10, both), dtype=torch.float32, device=features.device)
    found = torch.empty_like(features)
    if not features.numel():
        return found, torch.zeros_like(weight), torch.zeros_like(bias)
    most, warps = tile
    whole = triton.next_power_of_2(pixels)
    block = min(max(1, most * 256 // whole), triton.next_power_of_2(channels))
    _gradients_kernel[(triton.cdiv(channels, block), batch)](
        grad, features, taps, bias, found, sums, pixels, width, height, channels,
        PIXELS=whole, CHANNELS=block, PRE_SILU=pre_silu,
        FAST=features.is_cuda and features.dtype.itemsize == 2, num_warps=warps,
    )  # fmt: skip
    total = sums.sum(dim=0)
    # Tensors of their own: operators must not return views of one another.
    of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    of_weight.copy_(total[:9].t().reshape(weight.shape))
    return found, of_weight, torch.empty_like(bias).copy_(total[9])
