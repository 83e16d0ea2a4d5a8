"""Depthwise 3×3 with gate: a program walks down a strip of lines and keeps two lines of sums in registers.

Every input line is read three times (once for each horizontal tap, the last two from the L1), not nine times.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _row_of_taps(line, left, middle, right, taps, step, alive, ROW: tl.constexpr):
    """line + the three taps of row ROW of the kernel; `taps` points to the channels of tap 0."""
    first = tl.load(taps + (ROW * 3) * step, mask=alive, other=0.0).to(tl.float32)
    second = tl.load(taps + (ROW * 3 + 1) * step, mask=alive, other=0.0).to(tl.float32)
    third = tl.load(taps + (ROW * 3 + 2) * step, mask=alive, other=0.0).to(tl.float32)
    return line + left * first[None, :] + middle * second[None, :] + right * third[None, :]


@triton.jit
def _three(at, step, across, limit, alive):
    """A line, and what lies left and right of its pixels, as stored; it has `limit` pixels."""
    left = tl.load(at - step, mask=((across >= 1) & (across <= limit))[:, None] & alive[None, :], other=0.0)
    middle = tl.load(at, mask=(across < limit)[:, None] & alive[None, :], other=0.0)
    return left, middle, tl.load(at + step, mask=(across + 1 < limit)[:, None] & alive[None, :], other=0.0)


@triton.jit
def _wide(v, PRE_SILU: tl.constexpr):
    v = v.to(tl.float32)
    if PRE_SILU:
        v = v / (1.0 + tl.exp(-v))
    return v


@triton.jit
def _depthwise_gated_kernel(
    x, weight, bias, out, height, width, channels,
    LINES: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PRE_SILU: tl.constexpr,
):  # fmt: skip
    strips = tl.cdiv(height, LINES)
    image, top = tl.program_id(0) // strips, (tl.program_id(0) % strips) * LINES
    across = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    alive = channel < channels
    bias_v = tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    bias_g = tl.load(bias + channels + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    step = 2 * channels
    start = x + (image * height).to(tl.int64) * width * step + channel[None, :]
    within = across[:, None] * step
    zero = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    # Sums of the line above the one that is read, and of that line itself.
    above_v, above_g, here_v, here_g = zero, zero, zero, zero
    at = start + (top - 1) * (width * step) + within
    limit = tl.where(top >= 1, width, 0)  # a line outside the picture has no pixels
    lv, mv, rv = _three(at, step, across, limit, alive)
    lg, mg, rg = _three(at + channels, step, across, limit, alive)
    for index in range(LINES + 2):
        y = top + index - 1
        # The next line is on its way while this one is added up.
        at = start + (y + 1) * (width * step) + within
        limit = tl.where(y + 1 < height, width, 0)
        next_lv, next_mv, next_rv = _three(at, step, across, limit, alive)
        next_lg, next_mg, next_rg = _three(at + channels, step, across, limit, alive)
        l, m, r = _wide(lv, PRE_SILU), _wide(mv, PRE_SILU), _wide(rv, PRE_SILU)
        above_v = _row_of_taps(above_v, l, m, r, weight + channel, step, alive, 2)
        next_v = _row_of_taps(zero, l, m, r, weight + channel, step, alive, 0)
        here_v = _row_of_taps(here_v, l, m, r, weight + channel, step, alive, 1)
        l, m, r = _wide(lg, PRE_SILU), _wide(mg, PRE_SILU), _wide(rg, PRE_SILU)
        above_g = _row_of_taps(above_g, l, m, r, weight + channels + channel, step, alive, 2)
        next_g = _row_of_taps(zero, l, m, r, weight + channels + channel, step, alive, 0)
        here_g = _row_of_taps(here_g, l, m, r, weight + channels + channel, step, alive, 1)
        done = y - 1
        value, gate = above_v + bias_v, above_g + bias_g
        result = value * gate / (1.0 + tl.exp(-gate))
        where = out + ((image * height + done).to(tl.int64) * width + across[:, None]) * channels
        limit = tl.where((index >= 2) & (done < height), width, 0)
        inside = (across < limit)[:, None] & alive[None, :]
        tl.store(where + channel[None, :], result.to(out.dtype.element_ty), mask=inside)
        above_v, above_g, here_v, here_g = here_v, here_g, next_v, next_g
        lv, mv, rv, lg, mg, rg = next_lv, next_mv, next_rv, next_lg, next_mg, next_rg


def launch_depthwise_gated(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    pre_silu: bool,
    tile: tuple[int, int, int] | None = None,
    warps: int = 4,
) -> Tensor:
    """(batch, height, width, 2·channels) -> (batch, height, width, channels).

    `tile` is (lines, pixels, channels) of a program. The weight is read tap by tap: one whose channels lie
    side by side in memory is taken as it is, any other is copied.
    """
    features = features.contiguous()
    batch, height, width, both = features.shape
    channels = both // 2
    out = torch.empty((batch, height, width, channels), dtype=features.dtype, device=features.device)
    if out.numel():
        lines, pixels, block = tile or (16, 32, 32)
        block = min(block, triton.next_power_of_2(channels))
        lines, pixels = min(lines, height), min(pixels, triton.next_power_of_2(width))
        grid = (batch * triton.cdiv(height, lines), triton.cdiv(width, pixels), triton.cdiv(channels, block))
        _depthwise_gated_kernel[grid](
            features, weight.flatten(1).t().contiguous(), bias.contiguous(), out, height, width, channels,
            LINES=lines, PIXELS=pixels, CHANNELS=block, PRE_SILU=pre_silu, num_warps=warps,
            maxnreg=168,  # three programs to a processor
        )  # fmt: skip
    return out
