"""Linear attention in two passes: states of token blocks (then summed, no atomics), then outputs.

`WIDE` widens the operands of products to fp32, since the interpreter cannot multiply bf16.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _state_kernel(
    key, value, states, tokens, heads,
    key_b, key_n, key_h, value_b, value_n, value_h,
    DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCKS_EACH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    part, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = tl.arange(0, DIM)
    total = tl.zeros((DIM, DIM), dtype=tl.float32)
    ones = tl.zeros((DIM,), dtype=tl.float32)
    for index in range(BLOCKS_EACH):
        rows = (part * BLOCKS_EACH + index) * BLOCK + tl.arange(0, BLOCK)
        inside = (rows < tokens)[:, None]
        k = tl.load(
            key + batch * key_b + head * key_h + rows[:, None] * key_n + columns, mask=inside, other=0.0
        )
        v = tl.load(
            value + batch * value_b + head * value_h + rows[:, None] * value_n + columns,
            mask=inside,
            other=0.0,
        )
        if WIDE:
            k, v = k.to(tl.float32), v.to(tl.float32)
        k = tl.maximum(k.to(tl.float32), 0.0).to(k.dtype)
        total += tl.dot(tl.trans(v), k, input_precision="ieee")
        ones += tl.sum(k.to(tl.float32), axis=0)
    base = states + ((part * tl.num_programs(2) + batch) * heads + head) * (DIM + 1) * DIM
    tl.store(base + columns[:, None] * DIM + columns[None, :], total)
    tl.store(base + DIM * DIM + columns, ones)


@triton.jit
def _apply_kernel(
    query, state, output, tokens, heads, eps,
    query_b, query_n, query_h,
    DIM: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, DIM)
    inside = (rows < tokens)[:, None]
    q = tl.load(
        query + batch * query_b + head * query_h + rows[:, None] * query_n + columns, mask=inside, other=0.0
    )
    q = tl.maximum(q.to(tl.float32), 0.0)
    base = state + (batch * heads + head) * (DIM + 1) * DIM
    matrix = tl.load(base + columns[:, None] * DIM + columns[None, :])
    ones = tl.load(base + DIM * DIM + columns)
    top = tl.dot(q, tl.trans(matrix), input_precision="ieee")
    below = tl.sum(q * ones[None, :], axis=1) + eps
    result = top / below[:, None]
    if HALF:
        result = tl.minimum(tl.maximum(result, -65504.0), 65504.0)
    where = output + ((batch * tokens + rows[:, None]) * heads + head) * DIM + columns
    tl.store(where, result.to(output.dtype.element_ty), mask=inside)


def launch_state(key: Tensor, value: Tensor, block: int = 64, blocks_each: int = 8) -> Tensor:
    """Key and value (batch, tokens, heads, dim) with any strides but a contiguous last axis -> fp32 state."""
    key, value = _last_contiguous(key), _last_contiguous(value)
    batch, tokens, heads, dim = key.shape
    parts = max(1, triton.cdiv(tokens, block * blocks_each))
    states = torch.empty((parts, batch, heads, dim + 1, dim), dtype=torch.float32, device=key.device)
    _state_kernel[(parts, heads, batch)](
        key, value, states, tokens, heads,
        key.stride(0), key.stride(1), key.stride(2), value.stride(0), value.stride(1), value.stride(2),
        DIM=dim, BLOCK=block, BLOCKS_EACH=blocks_each, WIDE=not key.is_cuda,
    )  # fmt: skip
    # Summed in a fixed order, so the same input gives the same bits on every run.
    return states[0] if parts == 1 else states.sum(0)


def launch_apply(query: Tensor, state: Tensor, eps: float, block: int = 64) -> Tensor:
    """Query (batch, tokens, heads, dim) and fp32 state -> output of the query's shape and dtype."""
    query = _last_contiguous(query)
    batch, tokens, heads, dim = query.shape
    output = torch.empty((batch, tokens, heads, dim), dtype=query.dtype, device=query.device)
    if tokens:
        _apply_kernel[(triton.cdiv(tokens, block), heads, batch)](
            query, state.contiguous(), output, tokens, heads, eps,
            query.stride(0), query.stride(1), query.stride(2),
            DIM=dim, BLOCK=block, HALF=query.dtype == torch.float16,
        )  # fmt: skip
    return output


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
