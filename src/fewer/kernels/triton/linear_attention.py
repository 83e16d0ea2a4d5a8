"""Linear attention in two passes: states of token blocks (then summed, no atomics), then outputs.

`WIDE` widens the operands of products to fp32, since the interpreter cannot multiply bf16. `EXACT` adds up
blocks in fp64: fp32 numbers of like size fit into it without a rounding, so their order does not matter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _state_kernel(
    key, value, states, tokens, heads, each,
    key_b, key_n, key_h, value_b, value_n, value_h,
    HEAD: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    part, first, batch = tl.program_id(0), tl.program_id(1) * HEADS, tl.program_id(2)
    # Neighbouring heads side by side: longer runs of memory, for products of which only blocks are kept.
    lane = tl.arange(0, HEADS * DIM)
    head, column = first + lane // DIM, lane % DIM
    known = (column < HEAD) & (head < heads)
    key += batch * key_b + (head * key_h + column)[None, :]
    value += batch * value_b + (head * value_h + column)[None, :]
    SUM: tl.constexpr = tl.float64 if EXACT else tl.float32  # pyright: ignore
    total = tl.zeros((HEADS * DIM, HEADS * DIM), dtype=SUM)
    ones = tl.zeros((HEADS * DIM,), dtype=SUM)
    for start in range(part * each, tl.minimum((part + 1) * each, tokens), BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = (rows < tokens)[:, None] & known[None, :]
        rows = rows.to(tl.int64)[:, None]
        k = tl.load(key + rows * key_n, mask=inside, other=0.0)
        v = tl.load(value + rows * value_n, mask=inside, other=0.0)
        if WIDE:
            k, v = k.to(tl.float32), v.to(tl.float32)
        k = tl.maximum(k.to(tl.float32), 0.0).to(k.dtype)
        if EXACT:
            total += tl.dot(tl.trans(v), k, input_precision="ieee").to(SUM)
        else:
            total = tl.dot(tl.trans(v), k, acc=total, input_precision="ieee")
        ones += tl.sum(k.to(tl.float32), axis=0).to(SUM)
    base = states + ((part * tl.num_programs(2) + batch) * heads + head) * (HEAD + 1) * HEAD
    inside = (head[:, None] == head[None, :]) & known[:, None] & known[None, :]
    tl.store(base[:, None] + column[:, None] * HEAD + column[None, :], total, mask=inside)
    tl.store(base + HEAD * HEAD + column, ones, mask=known)


@triton.jit
def _apply_kernel(
    query, state, output, tokens, heads, eps,
    query_b, query_n, query_h, output_b, output_n, output_h, parts, part_stride,
    HEAD: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr, SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, DIM)
    known = columns < HEAD
    inside = (rows < tokens)[:, None] & known[None, :]
    rows = rows.to(tl.int64)[:, None]
    q = tl.load(query + batch * query_b + head * query_h + rows * query_n + columns, mask=inside, other=0.0)
    base = state + (batch * heads + head) * (HEAD + 1) * HEAD
    square = known[:, None] & known[None, :]
    SUM: tl.constexpr = tl.float64 if EXACT else tl.float32  # pyright: ignore
    matrix = tl.zeros((DIM, DIM), dtype=SUM)
    ones = tl.zeros((DIM,), dtype=SUM)
    # Summed in a fixed order, so the same input gives the same bits on every run.
    for _ in range(parts):
        matrix += tl.load(base + columns[:, None] * HEAD + columns[None, :], mask=square, other=0.0)
        ones += tl.load(base + HEAD * HEAD + columns, mask=known, other=0.0)
        base += part_stride
    matrix, ones = matrix.to(tl.float32), ones.to(tl.float32)
    wide = tl.maximum(q.to(tl.float32), 0.0)
    if SPLIT:
        # 16-bit tensor cores with nearly fp32's precision: the state as the sum of two 16-bit numbers.
        q = wide.to(q.dtype)
        high = matrix.to(q.dtype)
        top = tl.dot(q, tl.trans(high))
        top = tl.dot(q, tl.trans((matrix - high.to(tl.float32)).to(q.dtype)), acc=top)
    else:
        top = tl.dot(wide, tl.trans(matrix), input_precision="ieee")
    below = tl.sum(wide * ones[None, :], axis=1) + eps
    result = top * (1.0 / below)[:, None]
    if HALF:
        result = tl.minimum(tl.maximum(result, -65504.0), 65504.0)
    where = output + batch * output_b + head * output_h + rows * output_n + columns
    tl.store(where, result.to(output.dtype.element_ty), mask=inside)


# Above, programs that read would spend their time on adding up partial states.
MOST_TOKENS_UNSUMMED = 4096


def launch_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, eps: float, exact: bool = False
) -> Tensor:
    """Both passes; if it is little, the second adds up what programs of the first have found."""
    tokens = key.shape[1]
    if tokens > MOST_TOKENS_UNSUMMED:
        states = _partial_states(key, value, 1024, 64 if exact else 128, exact).sum(0, keepdim=True)
    else:
        each = max(256, triton.cdiv(tokens, 8 * 128) * 128)
        states = _partial_states(key, value, each, 64 if exact else 128, exact)
    return _apply(query, states, eps, None, 128)


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
            EXACT=states.dtype == torch.float64,
        )  # fmt: skip
    return output


def _lanes(dim: int, heads: int) -> tuple[int, int]:
    """The width of a head in a program, and how many heads it takes."""
    size = max(16, triton.next_power_of_2(dim))
    return size, 2 if size <= 32 and heads > 1 else 1


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
