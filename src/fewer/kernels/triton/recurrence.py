"""A gated recurrent unit through time in one kernel: a program owns some histories and walks all their steps.

Histories are independent, so programs never wait for each other; the state stays in registers, and a step
costs one read of the recurrent matrix from the cache instead of launches.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _forward_kernel(
    gates, inner, states, lengths, weight, bias, rows, width,
    ROWS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = row < rows
    length = tl.load(lengths + row, mask=known, other=0)
    lane = tl.arange(0, HIDDEN)
    # `weight` is (hidden, 3 hidden): what each state channel gives to r, z and n
    square = weight + lane[:, None] * (3 * HIDDEN) + lane[None, :]
    reset_bias, keep_bias = tl.load(bias + lane)[None, :], tl.load(bias + HIDDEN + lane)[None, :]
    new_bias = tl.load(bias + 2 * HIDDEN + lane)[None, :]
    state = tl.zeros((ROWS, HIDDEN), dtype=tl.float32)
    for step in range(width - tl.max(length), width):
        begun = (step >= width - length) & known
        seen, place = begun[:, None], row.to(tl.int64) * width + step
        gate = gates + place[:, None] * (3 * HIDDEN) + lane[None, :]
        reset = tl.load(gate, mask=seen, other=0.0) + reset_bias
        reset = tl.sigmoid(reset + tl.dot(state, tl.load(square), input_precision=PRECISION))
        keep = tl.load(gate + HIDDEN, mask=seen, other=0.0) + keep_bias
        keep = tl.sigmoid(keep + tl.dot(state, tl.load(square + HIDDEN), input_precision=PRECISION))
        own = tl.dot(state, tl.load(square + 2 * HIDDEN), input_precision=PRECISION) + new_bias
        new = tl.load(gate + 2 * HIDDEN, mask=seen, other=0.0) + reset * own
        new = 2 * tl.sigmoid(2 * new) - 1
        state = tl.where(seen, new + keep * (state - new), 0.0)
        tl.store(gate, reset, mask=seen)
        tl.store(gate + HIDDEN, keep, mask=seen)
        tl.store(gate + 2 * HIDDEN, new, mask=seen)
        tl.store(inner + place[:, None] * HIDDEN + lane[None, :], own, mask=seen)
        tl.store(states + place[:, None] * HIDDEN + lane[None, :], state, mask=seen)


@triton.jit
def _backward_kernel(
    gates, inner, states, asked, lengths, weight, rows, width, kept,
    ROWS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = row < rows
    length = tl.load(lengths + row, mask=known, other=0)
    lane = tl.arange(0, HIDDEN)
    # `weight` is (3 hidden, hidden)
    square = weight + lane[:, None] * HIDDEN + lane[None, :]
    longest = tl.max(length)
    flowing = tl.zeros((ROWS, HIDDEN), dtype=tl.float32)
    for back in range(longest):
        step = width - 1 - back
        begun = (step >= width - length) & known
        seen, place = begun[:, None], row.to(tl.int64) * width + step
        gate = gates + place[:, None] * (3 * HIDDEN) + lane[None, :]
        at = place[:, None] * HIDDEN + lane[None, :]
        wanted = asked + (row.to(tl.int64) * kept + step - (width - kept))[:, None] * HIDDEN + lane[None, :]
        counts = begun & (length * 0 + step >= width - kept)
        flowing += tl.load(wanted, mask=counts[:, None], other=0.0)
        flowing = tl.where(seen, flowing, 0.0)
        reset = tl.load(gate, mask=seen, other=0.0)
        keep = tl.load(gate + HIDDEN, mask=seen, other=0.0)
        new = tl.load(gate + 2 * HIDDEN, mask=seen, other=0.0)
        own = tl.load(inner + at, mask=seen, other=0.0)
        before = tl.load(states + at - HIDDEN, mask=seen & (step > width - length)[:, None], other=0.0)
        to_keep = flowing * (before - new) * keep * (1 - keep)
        to_new = flowing * (1 - keep) * (1 - new * new)
        to_own = to_new * reset
        to_reset = to_new * own * reset * (1 - reset)
        tl.store(gate, to_reset, mask=known[:, None])
        tl.store(gate + HIDDEN, to_keep, mask=known[:, None])
        tl.store(gate + 2 * HIDDEN, to_new, mask=known[:, None])
        tl.store(inner + at, to_own, mask=known[:, None])
        flowing *= keep
        flowing += tl.dot(to_reset, tl.load(square), input_precision=PRECISION)
        flowing += tl.dot(to_keep, tl.load(square + HIDDEN * HIDDEN), input_precision=PRECISION)
        flowing += tl.dot(to_own, tl.load(square + 2 * HIDDEN * HIDDEN), input_precision=PRECISION)
    nothing = tl.zeros((ROWS, HIDDEN), dtype=tl.float32)
    for step in range(width - longest):  # before anybody has begun
        place = row.to(tl.int64) * width + step
        gate = gates + place[:, None] * (3 * HIDDEN) + lane[None, :]
        tl.store(gate, nothing, mask=known[:, None])
        tl.store(gate + HIDDEN, nothing, mask=known[:, None])
        tl.store(gate + 2 * HIDDEN, nothing, mask=known[:, None])
        tl.store(inner + place[:, None] * HIDDEN + lane[None, :], nothing, mask=known[:, None])


def launch_recurrence(
    gates: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, rows: int = 16, warps: int = 8
) -> tuple[Tensor, Tensor]:
    """(W_hn h + b_hn, states), both (batch, width, hidden), zero where a history has not begun.

    `gates` (batch, width, 3 hidden) holds W_i x + b_i and afterwards r, z, n; histories end at the right.
    """
    batch, width, hidden = gates.shape[0], gates.shape[1], weight.shape[1]
    inner, states = (gates.new_zeros(batch, width, hidden) for _ in range(2))
    if inner.numel():
        _forward_kernel[(triton.cdiv(batch, rows),)](
            gates, inner, states, lengths, weight.t().contiguous(), bias, batch, width,
            ROWS=rows, HIDDEN=hidden, PRECISION=_precision(gates), num_warps=warps, num_stages=1,
        )  # fmt: skip
    return inner, states


def launch_recurrence_backward(
    gates: Tensor,
    inner: Tensor,
    states: Tensor,
    asked: Tensor,
    lengths: Tensor,
    weight: Tensor,
    rows: int = 16,
    warps: int = 8,
) -> None:
    """Turns `gates` into the gradients of W_i x + b_i, and `inner` into those of W_hn h + b_hn.

    `asked` (batch, kept, hidden) are the gradients of the last `kept` states.
    """
    batch, width, hidden = inner.shape
    if inner.numel():
        _backward_kernel[(triton.cdiv(batch, rows),)](
            gates, inner, states, asked.contiguous(), lengths, weight.contiguous(),
            batch, width, asked.shape[1],
            ROWS=rows, HIDDEN=hidden, PRECISION=_precision(gates), num_warps=warps, num_stages=1,
        )  # fmt: skip


def _precision(gates: Tensor) -> str:
    """As cuDNN's own recurrence: TF32 unless torch.backends.cudnn.allow_tf32 forbids it."""
    return "tf32" if gates.is_cuda and torch.backends.cudnn.allow_tf32 else "ieee"
