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
    ROWS: tl.constexpr, HIDDEN: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = row < rows
    length = tl.load(lengths + row, mask=known, other=0)
    lane = tl.arange(0, HIDDEN)
    # `weight` is (hidden, 3 hidden): what each state channel gives to r, z and n
    square = weight + lane[:, None] * (3 * HIDDEN) + lane[None, :]
    if HALF:  # the matrix stays in registers for the whole walk
        to_reset, to_keep, to_own = tl.load(square), tl.load(square + HIDDEN), tl.load(square + 2 * HIDDEN)
    reset_bias, keep_bias = tl.load(bias + lane)[None, :], tl.load(bias + HIDDEN + lane)[None, :]
    new_bias = tl.load(bias + 2 * HIDDEN + lane)[None, :]
    state = tl.zeros((ROWS, HIDDEN), dtype=tl.float32)
    first = width - tl.max(length)
    begun = (first >= width - length) & known & (length > 0)
    gate = gates + (row.to(tl.int64) * width + first)[:, None] * (3 * HIDDEN) + lane[None, :]
    reset = tl.load(gate, mask=begun[:, None], other=0.0)
    keep = tl.load(gate + HIDDEN, mask=begun[:, None], other=0.0)
    new = tl.load(gate + 2 * HIDDEN, mask=begun[:, None], other=0.0)
    for step in range(first, width):
        begun = (step >= width - length) & known
        seen, place = begun[:, None], row.to(tl.int64) * width + step
        gate = gates + place[:, None] * (3 * HIDDEN) + lane[None, :]
        # the next step's inputs are on their way while this one is computed
        coming = (known & (step + 1 >= width - length) & (length * 0 + step + 1 < width))[:, None]
        next_reset = tl.load(gate + 3 * HIDDEN, mask=coming, other=0.0)
        next_keep = tl.load(gate + 4 * HIDDEN, mask=coming, other=0.0)
        next_new = tl.load(gate + 5 * HIDDEN, mask=coming, other=0.0)
        if HALF:
            rounded = state.to(tl.float16)
            reset += tl.dot(rounded, to_reset)
            keep += tl.dot(rounded, to_keep)
            own = tl.dot(rounded, to_own) + new_bias
        else:
            reset += tl.dot(state, tl.load(square), input_precision="ieee")
            keep += tl.dot(state, tl.load(square + HIDDEN), input_precision="ieee")
            own = tl.dot(state, tl.load(square + 2 * HIDDEN), input_precision="ieee") + new_bias
        reset, keep = tl.sigmoid(reset + reset_bias), tl.sigmoid(keep + keep_bias)
        new = 2 * tl.sigmoid(2 * (new + reset * own)) - 1
        state = tl.where(seen, new + keep * (state - new), 0.0)
        tl.store(gate, reset, mask=seen)
        tl.store(gate + HIDDEN, keep, mask=seen)
        tl.store(gate + 2 * HIDDEN, new, mask=seen)
        tl.store(inner + place[:, None] * HIDDEN + lane[None, :], own, mask=seen)
        tl.store(states + place[:, None] * HIDDEN + lane[None, :], state, mask=seen)
        reset, keep, new = next_reset, next_keep, next_new


@triton.jit
def _backward_kernel(
    gates, inner, states, asked, lengths, weight, scale, rows, width, kept,
    ROWS: tl.constexpr, HIDDEN: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = row < rows
    length = tl.load(lengths + row, mask=known, other=0)
    lane = tl.arange(0, HIDDEN)
    # `weight` is (3 hidden, hidden)
    square = weight + lane[:, None] * HIDDEN + lane[None, :]
    if HALF:
        from_reset, from_keep = tl.load(square), tl.load(square + HIDDEN * HIDDEN)
        from_own = tl.load(square + 2 * HIDDEN * HIDDEN)
        larger = tl.load(scale)  # a power of two that brings the gradients into the range of half precision
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
        if HALF:
            through = tl.dot((to_reset * larger).to(tl.float16), from_reset)
            through += tl.dot((to_keep * larger).to(tl.float16), from_keep)
            through += tl.dot((to_own * larger).to(tl.float16), from_own)
            flowing = flowing * keep + through / larger
        else:
            flowing *= keep
            flowing += tl.dot(to_reset, tl.load(square), input_precision="ieee")
            flowing += tl.dot(to_keep, tl.load(square + HIDDEN * HIDDEN), input_precision="ieee")
            flowing += tl.dot(to_own, tl.load(square + 2 * HIDDEN * HIDDEN), input_precision="ieee")
    nothing = tl.zeros((ROWS, HIDDEN), dtype=tl.float32)
    for step in range(width - longest):  # before anybody has begun
        place = row.to(tl.int64) * width + step
        gate = gates + place[:, None] * (3 * HIDDEN) + lane[None, :]
        tl.store(gate, nothing, mask=known[:, None])
        tl.store(gate + HIDDEN, nothing, mask=known[:, None])
        tl.store(gate + 2 * HIDDEN, nothing, mask=known[:, None])
        tl.store(inner + place[:, None] * HIDDEN + lane[None, :], nothing, mask=known[:, None])


def launch_recurrence(
    gates: Tensor,
    lengths: Tensor,
    weight: Tensor,
    bias: Tensor,
    half: bool | None = None,
    rows: int = 16,
    warps: int = 8,
) -> tuple[Tensor, Tensor]:
    """(W_hn h + b_hn, states), both (batch, width, hidden), zero where a history has not begun.

    `gates` (batch, width, 3 hidden) holds W_i x + b_i and afterwards r, z, n; histories end at the right.
    `half`: the recurrent product in half precision, whose eleven bits of a number are those of TF32 (a state
    lies within -1..1); sums stay in single precision. Default: where cuDNN may use TF32.
    """
    batch, width, hidden = gates.shape[0], gates.shape[1], weight.shape[1]
    half = may_round(gates) if half is None else half
    inner, states = (gates.new_zeros(batch, width, hidden) for _ in range(2))
    turned = weight.t().contiguous()
    if inner.numel():
        _forward_kernel[(triton.cdiv(batch, rows),)](
            gates, inner, states, lengths, turned.half() if half else turned, bias, batch, width,
            ROWS=rows, HIDDEN=hidden, HALF=half, num_warps=warps, num_stages=1,
        )  # fmt: skip
    return inner, states


def launch_recurrence_backward(
    gates: Tensor,
    inner: Tensor,
    states: Tensor,
    asked: Tensor,
    lengths: Tensor,
    weight: Tensor,
    half: bool | None = None,
    rows: int = 16,
    warps: int = 8,
) -> None:
    """Turns `gates` into the gradients of W_i x + b_i, and `inner` into those of W_hn h + b_hn.

    `asked` (batch, kept, hidden) are the gradients of the last `kept` states. With `half` they are brought
    to about 1 by a power of two while they pass through the recurrent product.
    """
    batch, width, hidden = inner.shape
    half = may_round(gates) if half is None else half
    if inner.numel():
        largest = asked.abs().amax().clamp(min=1e-30)
        scale = torch.exp2(-largest.log2().ceil()).view(1)
        weight = weight.half() if half else weight
        _backward_kernel[(triton.cdiv(batch, rows),)](
            gates, inner, states, asked.contiguous(), lengths, weight.contiguous(), scale,
            batch, width, asked.shape[1],
            ROWS=rows, HIDDEN=hidden, HALF=half, num_warps=warps, num_stages=1,
        )  # fmt: skip


def may_round(gates: Tensor) -> bool:
    """As cuDNN's own recurrence: TF32's eleven bits unless torch.backends.cudnn.allow_tf32 forbids it."""
    return gates.is_cuda and torch.backends.cudnn.allow_tf32
