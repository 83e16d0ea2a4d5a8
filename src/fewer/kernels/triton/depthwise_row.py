"""One output row of the gated depthwise convolution from three input rows that lie anywhere."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _depthwise_row_kernel(
    above, middle, below, weight, bias, out, width, channels,
    above_b, middle_b, below_b, out_b, weight_c, weight_y, weight_x,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    across = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    alive = channel < channels
    value = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    gate = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for dy in tl.static_range(3):  # pyright: ignore
        if dy == 0:
            row = above + batch * above_b
        elif dy == 1:
            row = middle + batch * middle_b
        else:
            row = below + batch * below_b
        for dx in tl.static_range(3):  # pyright: ignore
            column = across + dx - 1
            inside = ((column >= 0) & (column < width))[:, None] & alive[None, :]
            where = row + column[:, None].to(tl.int64) * (2 * channels) + channel[None, :]
            a = tl.load(where, mask=inside, other=0.0).to(tl.float32)
            b = tl.load(where + channels, mask=inside, other=0.0).to(tl.float32)
            tap = weight + dy * weight_y + dx * weight_x
            w = tl.load(tap + channel * weight_c, mask=alive, other=0.0)
            value += a * w.to(tl.float32)[None, :]
            w = tl.load(tap + (channel + channels) * weight_c, mask=alive, other=0.0)
            gate += b * w.to(tl.float32)[None, :]
    value += tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias + channels + channel, mask=alive, other=0.0).to(tl.float32)[None, :]
    result = value * gate / (1.0 + tl.exp(-gate))
    where = out + batch * out_b + across[:, None].to(tl.int64) * channels + channel[None, :]
    tl.store(where, result.to(out.dtype.element_ty), mask=(across < width)[:, None] & alive[None, :])


def launch_depthwise_row(
    above: Tensor, middle: Tensor, below: Tensor, weight: Tensor, bias: Tensor, out: Tensor
) -> None:
    """Three rows (batch, width, 2·channels) into `out` (batch, width, channels), in place.

    Batches may lie apart; pixels and channels of a row must be contiguous. The weight may lie in any way: the
    engine's is tap by tap.
    """
    batch, width, channels = out.shape
    rows = [
        row if row.stride()[1:] == (2 * channels, 1) else row.contiguous() for row in (above, middle, below)
    ]
    assert out.stride()[1:] == (channels, 1), "the row to write must be contiguous"
    pixels, block = 4, min(128, triton.next_power_of_2(channels))
    grid = (batch, triton.cdiv(width, pixels), triton.cdiv(channels, block))
    _depthwise_row_kernel[grid](
        *rows, weight, bias.contiguous(), out, width, channels,
        *(row.stride(0) for row in rows), out.stride(0), *weight.stride(),
        PIXELS=pixels, CHANNELS=block,
    )  # fmt: skip
