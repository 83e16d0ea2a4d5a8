"""Depthwise k×k and grouped 1×1 in one kernel: a program owns some pixels of one group of channels."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _aggregate_kernel(
    x, depthwise, pointwise, out, height, width, channels, pixels,
    PIXELS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SIDE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * PIXELS
    local = tl.arange(0, PIXELS)
    pixel = first + local
    lane = tl.arange(0, DIM)
    known = lane < GROUP
    channel = tl.program_id(1) * GROUP + lane
    across, line = (pixel % width).to(tl.int32), ((pixel // width) % height).to(tl.int32)
    base = x + first * channels + local[:, None] * channels + channel[None, :]
    total = tl.zeros((PIXELS, DIM), dtype=tl.float32)
    for row in range(SIDE):  # not unrolled: many pixels at a time hide more than many taps
        dy = row - SIDE // 2
        above = (line + dy >= 0) & (line + dy < height) & (pixel < pixels)
        for column in tl.static_range(SIDE):  # pyright: ignore
            dx = column - SIDE // 2
            seen = above & (across + dx >= 0) & (across + dx < width)
            inside = seen[:, None] & known[None, :]
            v = tl.load(base + (dy * width + dx) * channels, mask=inside, other=0.0)
            tap = depthwise + (row * SIDE + column) * channels + channel
            w = tl.load(tap, mask=known, other=0.0)
            total += v.to(tl.float32) * w.to(tl.float32)[None, :]
    # (in, out) of this group's matrix, whose rows are outputs.
    square = known[:, None] & known[None, :]
    matrix = tl.load(pointwise + channel[None, :] * GROUP + lane[:, None], mask=square, other=0.0)
    rounded = total.to(out.dtype.element_ty)
    if WIDE:  # the interpreter cannot multiply bf16
        rounded, matrix = rounded.to(tl.float32), matrix.to(tl.float32)
    result = tl.dot(rounded, matrix, input_precision="ieee")
    where = out + pixel[:, None] * channels + channel[None, :]
    tl.store(where, result.to(out.dtype.element_ty), mask=(pixel < pixels)[:, None] & known[None, :])


def launch_aggregate(
    features: Tensor, depthwise: Tensor, pointwise: Tensor, block: int = 64, warps: int = 4
) -> Tensor:
    """As `reference_aggregate`; `block` pixels a program."""
    features = features.contiguous()
    batch, height, width, channels = features.shape
    group = pointwise.shape[1]
    out = torch.empty_like(features)
    pixels = batch * height * width
    if out.numel():
        _aggregate_kernel[(triton.cdiv(pixels, block), channels // group)](
            features, depthwise.flatten(1).t().contiguous(), pointwise.contiguous(), out,
            height, width, channels, pixels,
            PIXELS=block, GROUP=group, DIM=max(16, triton.next_power_of_2(group)), SIDE=depthwise.shape[1],
            WIDE=not features.is_cuda, num_warps=warps,
        )  # fmt: skip
    return out
