"""3×3 depthwise convolution in registers: a thread owns a few pixels side by side and two channels.

What it loads of a line serves all taps of its pixels (for four pixels, six loads instead of 36), and its
weights stay in registers while it walks down a picture. Tuples hold one (groups, channels) block per pixel.
"""

import triton
import triton.language as tl

from fewer.kernels.triton.gates import silu


@triton.jit
def weights(taps, step, alive):
    """The nine taps of some channels as rows; `taps` points to the channels of tap 0."""
    found = ()
    for tap in tl.static_range(9):  # pyright: ignore
        found = found + (tl.load(taps + tap * step, mask=alive, other=0.0).to(tl.float32)[None, :],)
    return found


@triton.jit
def columns(at, first, step, limit, alive, EACH: tl.constexpr, PRE_SILU: tl.constexpr, FAST: tl.constexpr):
    """Of one line, each thread's pixels and the neighbours on both sides; the line has `limit` pixels."""
    found = ()
    for place in tl.static_range(EACH + 2):  # pyright: ignore
        pixel = first + (place - 1)
        inside = ((pixel >= 0) & (pixel < limit))[:, None] & alive[None, :]
        v = tl.load(at + pixel[:, None] * step, mask=inside, other=0.0).to(tl.float32)
        if PRE_SILU:
            v = silu(v, FAST)
        found = found + (v,)
    return found


@triton.jit
def row_of_taps(sums, columns, w, EACH: tl.constexpr, ROW: tl.constexpr):
    """sums + the three taps of row ROW of the kernel."""
    found = ()
    for place in tl.static_range(EACH):  # pyright: ignore
        found = found + (
            sums[place]
            + columns[place] * w[ROW * 3]
            + columns[place + 1] * w[ROW * 3 + 1]
            + columns[place + 2] * w[ROW * 3 + 2],
        )
    return found


@triton.jit
def filled(v, EACH: tl.constexpr):
    found = ()
    for _ in tl.static_range(EACH):  # pyright: ignore
        found = found + (v,)
    return found
