"""Backward of the gated depthwise convolution for narrow pictures, in one walk down each of them.

A thread owns a few pixels side by side of one channel, with both halves of the gate. It reads a line, ends
the convolution of the line above (made again), the gate's gradients there, and the transposed convolution of
the line above that. Three lines of gradients stay in registers, so nothing lies in memory in between; what a
thread needs of its neighbours' pixels it computes itself. Tuples hold one block per pixel of a line.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.gates import silu
from fewer.kernels.triton.taps import filled, row_of_taps


@triton.jit
def _share(x, FAST: tl.constexpr):
    """sigmoid(x), by the hardware's tanh for results of 16 bits (as `gates.silu`)."""
    if FAST:
        half = 0.5 * x
        turn = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        y = 0.5 * turn + 0.5  # pyright: ignore[reportOperatorIssue]
    else:
        y = 1.0 / (1.0 + tl.exp(-x))
    return y


@triton.jit
def _taps(weight, both, channel, alive):
    found = ()
    for tap in tl.static_range(9):  # pyright: ignore
        found = found + (tl.load(weight + tap * both + channel, mask=alive, other=0.0).to(tl.float32),)
    return found


@triton.jit
def _gate_gradients(value, gate, g, FAST: tl.constexpr):
    share = _share(gate, FAST)
    both = g * share
    return both * gate, both * value * (1.0 + gate * (1.0 - share))


@triton.jit
def _back(
    x, to, step, column, alive, above, here, below, w, sums,
    WIDTH: tl.constexpr, EACH: tl.constexpr, PRE: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Writes the features' gradient of a line from three lines of the output's; adds to the eleven sums."""
    of_taps, of_bias, of_found = sums[:9], sums[9], sums[10]
    for place in tl.static_range(EACH):  # pyright: ignore
        inside = alive
        if WIDTH % EACH != 0:
            inside = alive & (column + place < WIDTH)
        raw = tl.load(x + place * step, mask=inside, other=0.0).to(tl.float32)
        seen = raw
        slope = raw
        if PRE:
            share = _share(raw, FAST)
            seen = raw * share
            slope = share + seen * (1.0 - share)
        # A tap (row, column) of this pixel was used by the output at row and column mirrored.
        back = below[place + 2] * w[0]  # one by one: each is a single instruction then
        back += below[place + 1] * w[1]
        back += below[place] * w[2]
        back += here[place + 2] * w[3]
        back += here[place + 1] * w[4]
        back += here[place] * w[5]
        back += above[place + 2] * w[6]
        back += above[place + 1] * w[7]
        back += above[place] * w[8]
        if PRE:
            back = back * slope
        of_taps = (
            of_taps[0] + seen * below[place + 2], of_taps[1] + seen * below[place + 1],
            of_taps[2] + seen * below[place], of_taps[3] + seen * here[place + 2],
            of_taps[4] + seen * here[place + 1], of_taps[5] + seen * here[place],
            of_taps[6] + seen * above[place + 2], of_taps[7] + seen * above[place + 1],
            of_taps[8] + seen * above[place],
        )  # fmt: skip
        of_bias += here[place + 1]
        if WIDTH % EACH != 0:
            back = tl.where(inside, back, 0.0)
        of_found += back
        tl.store(to + place * step, back.to(to.dtype.element_ty), mask=inside)
    return of_taps + (of_bias, of_found)


@triton.jit
def _pixels(
    at, column, inside, STEP: tl.constexpr, WIDTH: tl.constexpr, EACH: tl.constexpr, FIRST: tl.constexpr,
    COUNT: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """Raw values of COUNT pixels of a line, from FIRST beside a thread's own EACH; ONE: it owns the line."""
    found = ()
    for place in tl.static_range(COUNT):  # pyright: ignore
        own = (FIRST + place >= 0) and (FIRST + place < EACH)
        if ONE and not own:
            v = tl.zeros(inside.shape, dtype=tl.float32)
        else:
            there = inside
            if not (own and WIDTH % EACH == 0):
                there = inside & (column + (FIRST + place) >= 0) & (column + (FIRST + place) < WIDTH)
            v = tl.load(at + (FIRST + place) * STEP, mask=there, other=0.0).to(tl.float32)
        found = found + (v,)
    return found


@triton.jit
def _silus(values, COUNT: tl.constexpr, PRE: tl.constexpr, FAST: tl.constexpr):
    """Zero stays zero, so what is outside the picture may pass."""
    found = ()
    for place in tl.static_range(COUNT):  # pyright: ignore
        v = values[place]
        if PRE:
            v = silu(v, FAST)
        found = found + (v,)
    return found


@triton.jit
def _gradients_kernel(
    grad, x, weight, bias, found, sums, height,
    WIDTH: tl.constexpr, OWN: tl.constexpr, EACH: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, PRE: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    ONE: tl.constexpr = GROUPS == 1
    BOTH: tl.constexpr = 2 * OWN
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    column = (tl.arange(0, GROUPS) * EACH)[:, None]
    still = channel * 0 + column * 0
    alive = still == 0
    if OWN % CHANNELS != 0:
        alive = channel + still < OWN
    x, found = x + image * height * WIDTH * BOTH, found + image * height * WIDTH * BOTH
    x, found = x + (column * BOTH + channel), found + (column * BOTH + channel)
    grad = grad + image * height * WIDTH * OWN + (column * OWN + channel)
    w_v, w_g = _taps(weight, BOTH, channel, channel < OWN), _taps(weight, BOTH, OWN + channel, channel < OWN)
    bias_v = tl.load(bias + channel + still, mask=alive, other=0.0).to(tl.float32)
    bias_g = tl.load(bias + OWN + channel + still, mask=alive, other=0.0).to(tl.float32)
    start_v, start_g = filled(bias_v, EACH + 2), filled(bias_g, EACH + 2)
    sum_v, sum_g, next_v, next_g = start_v, start_g, start_v, start_g
    # Each of a tensor of its own: tuples that share one are taken for one variable where they change places.
    above_v = filled(tl.zeros((GROUPS, CHANNELS), dtype=tl.float32), EACH + 2)
    above_g = filled(tl.zeros((GROUPS, CHANNELS), dtype=tl.float32), EACH + 2)
    here_v = filled(tl.zeros((GROUPS, CHANNELS), dtype=tl.float32), EACH + 2)
    here_g = filled(tl.zeros((GROUPS, CHANNELS), dtype=tl.float32), EACH + 2)
    own_v = filled(tl.zeros((GROUPS, CHANNELS), dtype=tl.float32), 11)
    own_g = filled(tl.zeros((GROUPS, CHANNELS), dtype=tl.float32), 11)
    # Reads line y, finishes the output's gradients of line y - 1 and the features' of line y - 2.
    for y in range(height + 2):
        there = alive & (still + y < height)
        v = _pixels(x + y * WIDTH * BOTH, column, there, BOTH, WIDTH, EACH, -2, EACH + 4, ONE)
        g = _pixels(x + (y * WIDTH * BOTH + OWN), column, there, BOTH, WIDTH, EACH, -2, EACH + 4, ONE)
        there = alive & (still + y > 0) & (still + y <= height)
        upper = _pixels(grad + (y - 1) * WIDTH * OWN, column, there, OWN, WIDTH, EACH, -1, EACH + 2, ONE)
        v, g = _silus(v, EACH + 4, PRE, FAST), _silus(g, EACH + 4, PRE, FAST)
        value, gate = row_of_taps(sum_v, v, w_v, EACH + 2, 2), row_of_taps(sum_g, g, w_g, EACH + 2, 2)
        sum_v, sum_g = row_of_taps(next_v, v, w_v, EACH + 2, 1), row_of_taps(next_g, g, w_g, EACH + 2, 1)
        next_v, next_g = (
            row_of_taps(start_v, v, w_v, EACH + 2, 0),
            row_of_taps(start_g, g, w_g, EACH + 2, 0),
        )
        below_v, below_g = (), ()
        for place in tl.static_range(EACH + 2):  # pyright: ignore
            g_value, g_gate = _gate_gradients(value[place], gate[place], upper[place], FAST)
            below_v, below_g = below_v + (g_value,), below_g + (g_gate,)
        if y > 1:
            at = (y - 2) * WIDTH * BOTH
            own_v = _back(
                x + at, found + at, BOTH, column, alive, above_v, here_v, below_v, w_v, own_v,
                WIDTH, EACH, PRE, FAST,
            )  # fmt: skip
            at += OWN
            own_g = _back(
                x + at, found + at, BOTH, column, alive, above_g, here_g, below_g, w_g, own_g,
                WIDTH, EACH, PRE, FAST,
            )  # fmt: skip
        above_v, here_v, above_g, here_g = here_v, below_v, here_g, below_g
    to = sums + image * 11 * BOTH + tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS) < OWN
    for row in tl.static_range(11):  # pyright: ignore
        tl.store(to + row * BOTH, tl.sum(own_v[row], axis=0), mask=inside)
        tl.store(to + row * BOTH + OWN, tl.sum(own_g[row], axis=0), mask=inside)


Form = tuple[int, int, int | None]
"""Pixels side by side of a thread, channels of a program, registers a thread if bounded."""
FORM: Form = (4, 32, 128)


def launch_rows_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool, form: Form = FORM
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (batch, height, width, 2·channels) features, (2·channels, 1, 3, 3) weight and bias; and
    the first one's sum over all pixels, in fp32: the gradient of a bias that was added to the features.
    """
    features, grad = features.contiguous(), grad.contiguous()
    batch, height, width, both = features.shape
    sums = torch.empty((batch, 11, both), dtype=torch.float32, device=features.device)
    found = torch.empty_like(features)
    each, block, registers = form
    if features.numel():
        groups = triton.next_power_of_2(triton.cdiv(width, each))
        _gradients_kernel[(triton.cdiv(both // 2, block), batch)](
            grad, features, weight.flatten(1).t().contiguous(), bias, found, sums, height,
            WIDTH=width, OWN=both // 2, EACH=each, GROUPS=groups, CHANNELS=block, PRE=pre_silu,
            FAST=features.is_cuda and features.dtype.itemsize == 2,
            num_warps=max(1, groups * block // 32), maxnreg=registers,
        )  # fmt: skip
    total = sums.sum(dim=0)
    # Tensors of their own: operators must not return views of one another.
    of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    of_weight.copy_(total[:9].t().reshape(weight.shape))
    return found, of_weight, torch.empty_like(bias).copy_(total[9]), total[10].clone()
