"""Linear attention in two passes: states of token blocks (then summed, no atomics), then outputs.

`WIDE` widens the operands of products to fp32, since the interpreter cannot multiply bf16. `EXACT` adds up
blocks in fp64: fp32 numbers of like size fit into it without a rounding, so their order does not matter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.chain import chained, follow
from fewer.kernels.triton.linear_state import add_states, read_state, sum_tokens


@triton.jit
def _state_kernel(
    key, value, states, tokens, heads, each,
    key_b, key_n, key_h, value_b, value_n, value_h,
    HEAD: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
    EXACT: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    follow(CHAIN)
    part, first, batch = tl.program_id(0), tl.program_id(1) * HEADS, tl.program_id(2)
    # Neighbouring heads side by side: longer runs of memory, for products of which only blocks are kept.
    lane = tl.arange(0, HEADS * DIM)
    head, column = first + lane // DIM, lane % DIM
    known = (column < HEAD) & (head < heads)
    key += batch * key_b + (head * key_h + column)[None, :]
    value += batch * value_b + (head * value_h + column)[None, :]
    end = tl.minimum((part + 1) * each, tokens)
    total, ones = sum_tokens(
        key, value, part * each, end, tokens, key_n, value_n, known, HEADS * DIM, BLOCK, WIDE, EXACT
    )
    base = states + ((part * tl.num_programs(2) + batch) * heads + head) * (HEAD + 1) * HEAD
    inside = (head[:, None] == head[None, :]) & known[:, None] & known[None, :]
    tl.store(base[:, None] + column[:, None] * HEAD + column[None, :], total, mask=inside)
    tl.store(base + HEAD * HEAD + column, ones, mask=known)


@triton.jit
def _apply_kernel(
    query, state, output, tokens, heads, eps,
    query_b, query_n, query_h, output_b, output_n, output_h, parts, part_stride,
    HEAD: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr, SPLIT: tl.constexpr,
    EXACT: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    follow(CHAIN)
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, DIM)
    known = columns < HEAD
    inside = (rows < tokens)[:, None] & known[None, :]
    rows = rows.to(tl.int64)[:, None]
    q = tl.load(query + batch * query_b + head * query_h + rows * query_n + columns, mask=inside, other=0.0)
    base = state + (batch * heads + head) * (HEAD + 1) * HEAD
    matrix, ones = add_states(base, parts, part_stride, columns, known, HEAD, DIM, EXACT)
    result = read_state(q, matrix, ones, eps, HALF, SPLIT)
    where = output + batch * output_b + head * output_h + rows * output_n + columns
    tl.store(where, result.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _whole_kernel(
    query, key, value, output, tokens, eps,
    query_b, query_n, query_h, key_b, key_n, key_h, value_b, value_n, value_h, output_b, output_n, output_h,
    HEAD: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, HALF: tl.constexpr,
    WIDE: tl.constexpr, EXACT: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    # One program for all tokens of a head: the state never leaves its registers.
    follow(CHAIN)
    head, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, DIM)
    known = columns < HEAD
    key += batch * key_b + head * key_h + columns[None, :]
    value += batch * value_b + head * value_h + columns[None, :]
    SUM: tl.constexpr = tl.float64 if EXACT else tl.float32  # pyright: ignore
    total = tl.zeros((DIM, DIM), dtype=SUM)
    seen = tl.zeros((BLOCK, DIM), dtype=tl.float32)
    exact_ones = tl.zeros((DIM, 16), dtype=SUM)
    for start in tl.range(0, tokens, BLOCK, num_stages=STAGES):  # pyright: ignore
        rows = start + tl.arange(0, BLOCK)
        inside = (rows < tokens)[:, None] & known[None, :]
        k = tl.load(key + rows[:, None] * key_n, mask=inside, other=0.0)
        v = tl.load(value + rows[:, None] * value_n, mask=inside, other=0.0)
        if WIDE:
            k, v = k.to(tl.float32), v.to(tl.float32)
        k = tl.maximum(k.to(tl.float32), 0.0).to(k.dtype)
        if EXACT:
            total += tl.dot(tl.trans(k), v, input_precision="ieee").to(SUM)
            # Also by a product: a sum over rows would make the warps wait for each other.
            one = tl.full((BLOCK, 16), 1.0, dtype=k.dtype)
            exact_ones += tl.dot(tl.trans(k), one, input_precision="ieee").to(SUM)
        else:
            total = tl.dot(tl.trans(k), v, acc=total, input_precision="ieee")
            seen += k.to(tl.float32)
    # All columns of the exact ones are equal.
    ones = tl.max(exact_ones, axis=1).to(tl.float32) if EXACT else tl.sum(seen, axis=0)
    total = total.to(tl.float32)
    query += batch * query_b + head * query_h + columns[None, :]
    output += batch * output_b + head * output_h + columns[None, :]
    # As the sum of two 16-bit numbers the state keeps nearly fp32's precision on 16-bit tensor cores.
    high = total.to(query.dtype.element_ty)
    low = (total - high.to(tl.float32)).to(high.dtype)
    for start in tl.range(0, tokens, BLOCK, num_stages=STAGES):  # pyright: ignore
        rows = start + tl.arange(0, BLOCK)
        inside = (rows < tokens)[:, None] & known[None, :]
        q = tl.load(query + rows[:, None] * query_n, mask=inside, other=0.0)
        positive = tl.maximum(q.to(tl.float32), 0.0)
        if WIDE:
            top = tl.dot(positive, total, input_precision="ieee")
        else:
            q = positive.to(q.dtype)
            top = tl.dot(q, low, acc=tl.dot(q, high))
        below = tl.sum(positive * ones[None, :], axis=1) + eps
        result = top * (1.0 / below)[:, None]
        if HALF:
            result = tl.minimum(tl.maximum(result, -65504.0), 65504.0)
        tl.store(output + rows[:, None] * output_n, result.to(output.dtype.element_ty), mask=inside)


# Up to here one program reads all tokens of a head, if there are heads enough to keep the processors busy.
# Measured on one H100: of 64 tokens 6.7 us against 11.1, of 1,024 17.5 against 12.6. Exact sums always take
# two, as those of a band do: one kernel gives other bits.
MOST_TOKENS_AT_ONCE = 256
LEAST_PROGRAMS = 64
Whole = tuple[int, int, int]
"""Tokens that a program reads at a time, its warps, and how many times ahead it reads."""
WHOLE: Whole = (128, 4, 3)
# Above, programs that read would spend their time on adding up partial states.
MOST_TOKENS_UNSUMMED = 4096


def launch_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, eps: float, exact: bool = False
) -> Tensor:
    """Both passes; if it is little, the second adds up what the first has found, or they are one."""
    batch, tokens, heads, _ = key.shape
    few = query.dtype in (torch.bfloat16, torch.float16) and tokens <= MOST_TOKENS_AT_ONCE and not exact
    if few and query.shape == key.shape and batch * heads >= LEAST_PROGRAMS:
        return launch_whole(query, key, value, eps)
    if tokens > MOST_TOKENS_UNSUMMED:
        states = _partial_states(key, value, 1024, 64 if exact else 128, exact).sum(0, keepdim=True)
    else:
        each = max(256, triton.cdiv(tokens, 8 * 128) * 128)
        states = _partial_states(key, value, each, 64 if exact else 128, exact)
    return _apply(query, states, eps, None, 128)


def launch_whole(
    query: Tensor, key: Tensor, value: Tensor, eps: float, exact: bool = False, form: Whole = WHOLE
) -> Tensor:
    """The same in one kernel, for tokens that one program can walk through."""
    query, key, value = (_last_contiguous(tensor) for tensor in (query, key, value))
    batch, tokens, heads, dim = query.shape
    output = torch.empty((batch, tokens, heads, dim), dtype=query.dtype, device=query.device)
    if output.numel():
        block, warps, stages = form
        block = min(block, 64) if exact else block
        _whole_kernel[(heads, batch)](
            query, key, value, output, tokens, eps,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *output.stride()[:3],
            HEAD=dim, DIM=_lanes(dim, heads)[0], BLOCK=min(block, max(16, triton.next_power_of_2(tokens))),
            STAGES=stages, HALF=query.dtype == torch.float16, EXACT=exact,
            WIDE=not query.is_cuda or query.dtype == torch.float32,
            num_warps=warps,
            **chained(query.device),
        )  # fmt: skip
    return output


def launch_state(
    key: Tensor, value: Tensor, block: int = 64, each: int | None = None, exact: bool = False
) -> Tensor:
    """Key and value (batch, tokens, heads, dim) with any strides but a contiguous last axis -> fp32 state.

    `each` is how many tokens one program adds up.
    """
    states = _partial_states(
        key, value, each or max(256, triton.cdiv(key.shape[1], 8 * block) * block), block, exact
    )
    # Summed in a fixed order, so the same input gives the same bits on every run.
    return states[0] if states.shape[0] == 1 else states.sum(0)


def launch_apply(
    query: Tensor, state: Tensor, eps: float, output: Tensor | None = None, block: int = 128
) -> Tensor:
    """Query (batch, tokens, heads, dim) and fp32 or fp64 state -> output of the query's shape and dtype.

    `output` may have any strides but a contiguous last axis.
    """
    return _apply(query, state.contiguous()[None], eps, output, block)


def launch_apply_parts(query: Tensor, states: Tensor, eps: float) -> Tensor:
    """As `launch_apply`, of the sum of the states (parts, batch, heads, dim + 1, dim), contiguous in fp32."""
    return _apply(query, states, eps, None, 128)


def _partial_states(key: Tensor, value: Tensor, each: int, block: int, exact: bool = False) -> Tensor:
    key, value = _last_contiguous(key), _last_contiguous(value)
    batch, tokens, heads, dim = key.shape
    parts = max(1, triton.cdiv(tokens, each))
    dtype = torch.float64 if exact else torch.float32
    states = torch.empty((parts, batch, heads, dim + 1, dim), dtype=dtype, device=key.device)
    size, together = _lanes(dim, heads)
    _state_kernel[(parts, triton.cdiv(heads, together), batch)](
        key, value, states, tokens, heads, each,
        key.stride(0), key.stride(1), key.stride(2), value.stride(0), value.stride(1), value.stride(2),
        HEAD=dim, DIM=size, HEADS=together, BLOCK=block, WIDE=not key.is_cuda, EXACT=exact,
        **chained(key.device),
    )  # fmt: skip
    return states


def _apply(query: Tensor, states: Tensor, eps: float, output: Tensor | None, block: int) -> Tensor:
    query = _last_contiguous(query)
    batch, tokens, heads, dim = query.shape
    if output is None:
        output = torch.empty((batch, tokens, heads, dim), dtype=query.dtype, device=query.device)
    if tokens:
        _apply_kernel[(triton.cdiv(tokens, block), heads, batch)](
            query, states, output, tokens, heads, eps,
            query.stride(0), query.stride(1), query.stride(2),
            output.stride(0), output.stride(1), output.stride(2), states.shape[0], states.stride(0),
            HEAD=dim, DIM=_lanes(dim, heads)[0], BLOCK=block,
            HALF=query.dtype == torch.float16, SPLIT=query.is_cuda and query.dtype == torch.bfloat16,
            EXACT=states.dtype == torch.float64, **chained(query.device),
        )  # fmt: skip
    return output


def _lanes(dim: int, heads: int) -> tuple[int, int]:
    """The width of a head in a program, and how many heads it takes."""
    size = max(16, triton.next_power_of_2(dim))
    return size, 2 if size <= 32 and heads > 1 else 1


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
