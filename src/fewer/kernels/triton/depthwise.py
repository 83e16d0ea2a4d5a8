"""Depthwise 3×3 with gate: a program walks down a strip of lines and keeps two lines of sums in registers."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.chain import chained, follow
from fewer.kernels.triton.gates import silu
from fewer.kernels.triton.taps import columns, filled, row_of_taps, weights


@triton.jit
def _depthwise_gated_kernel(
    x, weight, bias, out, height, width, channels,
    LINES: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, CHANNELS: tl.constexpr,
    PRE_SILU: tl.constexpr, FAST: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    follow(CHAIN)
    strips = tl.cdiv(height, LINES)
    image, top = tl.program_id(2) // strips, (tl.program_id(2) % strips) * LINES
    first = (tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)) * EACH
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    alive = channel < channels
    step = 2 * channels
    w_v = weights(weight + channel, step, alive)
    w_g = weights(weight + channels + channel, step, alive)
    zero = tl.zeros((GROUPS, CHANNELS), dtype=tl.float32)
    start_v = filled(zero + tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :], EACH)
    start_g = filled(
        zero + tl.load(bias + channels + channel, mask=alive, other=0.0).to(tl.float32)[None, :], EACH
    )
    # Sums of the line above the one that is read, and of that line itself.
    above_v, above_g, here_v, here_g = start_v, start_g, start_v, start_g
    for index in range(LINES + 2):
        y = top + index - 1
        # A line outside the picture has no pixels.
        limit = tl.where((y >= 0) & (y < height), width, 0)
        at = x + (image * height + y).to(tl.int64) * width * step + channel[None, :]
        v = columns(at, first, step, limit, alive, EACH, PRE_SILU, FAST)
        g = columns(at + channels, first, step, limit, alive, EACH, PRE_SILU, FAST)
        value = row_of_taps(above_v, v, w_v, EACH, 2)
        gate = row_of_taps(above_g, g, w_g, EACH, 2)
        done = y - 1
        limit = tl.where((index >= 2) & (done < height), width, 0)
        to = out + (image * height + done).to(tl.int64) * width * channels + channel[None, :]
        for place in tl.static_range(EACH):  # pyright: ignore
            pixel = first + place
            result = value[place] * silu(gate[place], FAST)
            inside = (pixel < limit)[:, None] & alive[None, :]
            tl.store(to + pixel[:, None] * channels, result.to(out.dtype.element_ty), mask=inside)
        above_v, above_g = row_of_taps(here_v, v, w_v, EACH, 1), row_of_taps(here_g, g, w_g, EACH, 1)
        here_v, here_g = row_of_taps(start_v, v, w_v, EACH, 0), row_of_taps(start_g, g, w_g, EACH, 0)


Tile = tuple[int, int, int, int, int, int]
"""Lines (0: chosen by `lines_of`), groups of pixels, pixels in a group and channels of a program; its warps,
and registers a thread."""
TILE: Tile = (0, 4, 4, 64, 4, 128)


def lines_of(height: int, programs: int, at_once: int) -> int:
    """How many lines a program walks down where a whole column takes `programs` times the height's strips.

    Rounds of `at_once` programs times the lines of each, with the two that it reads beyond them: many lines
    read little twice, but may leave the last round nearly empty. This ordered all that was measured.
    """

    def cost(strips: int) -> int:
        return -(-programs * strips // at_once) * (-(-height // strips) + 2)

    return -(-height // min(range(1, height + 1), key=cost))


def launch_depthwise_gated(
    features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool, tile: Tile = TILE
) -> Tensor:
    """(batch, height, width, 2·channels) -> (batch, height, width, channels).

    The weight is read tap by tap: one whose channels lie side by side in memory is taken as it is, any other
    is copied.
    """
    features = features.contiguous()
    batch, height, width, both = features.shape
    channels = both // 2
    out = torch.empty((batch, height, width, channels), dtype=features.dtype, device=features.device)
    if out.numel():
        lines, groups, each, block, warps, registers = tile
        groups = min(groups, triton.next_power_of_2(triton.cdiv(width, each)))
        block = min(block, triton.next_power_of_2(channels))
        if not lines:
            columns_of_programs = triton.cdiv(channels, block) * triton.cdiv(width, groups * each) * batch
            lines = lines_of(height, columns_of_programs, _at_once(features.device, warps * 32 * registers))
        lines = min(lines, height)
        grid = (
            triton.cdiv(channels, block), triton.cdiv(width, groups * each),
            batch * triton.cdiv(height, lines),
        )  # fmt: skip
        _depthwise_gated_kernel[grid](
            features, weight.flatten(1).t().contiguous(), bias.contiguous(), out, height, width, channels,
            LINES=lines, GROUPS=groups, EACH=each, CHANNELS=block, PRE_SILU=pre_silu,
            FAST=features.is_cuda and features.dtype.itemsize == 2, num_warps=warps,
            maxnreg=registers, **chained(features.device),
        )  # fmt: skip
    return out


@functools.cache
def _at_once(device: torch.device, registers: int) -> int:
    """How many programs of so many registers a GPU runs at the same time."""
    if device.type != "cuda":
        return 1
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count * max(1, found.regs_per_multiprocessor // registers)
