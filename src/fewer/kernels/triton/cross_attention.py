"""Softmax attention of many queries to few keys: a program reads all keys for some queries of one head."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rows_of(base, rows, inside, stride, HEAD: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr):
    columns = tl.arange(0, DIM)
    mask = inside[:, None] & (columns < HEAD)[None, :]
    v = tl.load(base + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)
    if WIDE:  # the interpreter cannot multiply bf16
        v = v.to(tl.float32)
    return v


@triton.jit
def _cross_attention_kernel(
    query, keys, values, visible, output, tokens, length, heads, scale,
    query_b, query_n, query_h, key_b, key_h, key_n, value_b, value_h, value_n,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr,
    MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # Strides come in units of UNIT numbers, so that the compiler knows how well loads are aligned.
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    alive = rows < tokens
    q_base = query + (batch * query_b + head * query_h) * UNIT
    k_base, v_base = (
        keys + (batch * key_b + head * key_h) * UNIT,
        values + (batch * value_b + head * value_h) * UNIT,
    )
    q = _rows_of(q_base, rows, alive, query_n * UNIT, HEAD, DIM, WIDE)
    read = tl.zeros((QUERIES, DIM), dtype=tl.float32)
    highest = tl.full((QUERIES,), -1.0e30, dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    for start in range(0, length, KEYS):
        columns = start + tl.arange(0, KEYS)
        there = columns < length
        k = _rows_of(k_base, columns, there, key_n * UNIT, HEAD, DIM, WIDE)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            there = there & (tl.load(visible + batch * length + columns, mask=there, other=0) != 0)
        # In powers of two: `scale` holds the factor log2(e).
        score = tl.where(there[None, :], score * scale, -1.0e30)
        top = tl.maximum(highest, tl.max(score, axis=1))
        weights = tl.where(there[None, :], tl.exp2(score - top[:, None]), 0.0)
        shrink = tl.exp2(highest - top)
        highest = top
        total = total * shrink + tl.sum(weights, axis=1)
        v = _rows_of(v_base, columns, there, value_n * UNIT, HEAD, DIM, WIDE)
        read = tl.dot(weights.to(v.dtype), v, acc=read * shrink[:, None], input_precision="ieee")
    columns = tl.arange(0, DIM)
    where = output + ((batch * tokens + rows).to(tl.int64)[:, None] * heads + head) * HEAD + columns[None, :]
    inside = alive[:, None] & (columns < HEAD)[None, :]
    tl.store(where, (read / total[:, None]).to(output.dtype.element_ty), mask=inside)


def launch_cross_attention(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None,
    tile: tuple[int, int] | None = None, warps: int = 4,
) -> Tensor:  # fmt: skip
    """As `reference_cross_attention`; `tile` is (queries, keys) of a step."""
    batch, tokens, heads, head_dim = query.shape
    query, keys, values = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, keys, values))
    length = keys.shape[2]
    output = torch.empty((batch, tokens, heads, head_dim), dtype=query.dtype, device=query.device)
    if not output.numel():
        return output
    strides = [stride for t in (query, keys, values) for stride in t.stride()[:3]]
    unit = 8 if all(stride % 8 == 0 for stride in strides) else 1
    # Measured on one H100: fewer keys a step for wide heads and for many queries.
    tile = tile or ((64, 32) if head_dim > 80 or tokens > 4096 else (64, 64))
    queries = min(tile[0], max(16, triton.next_power_of_2(tokens)))
    _cross_attention_kernel[(triton.cdiv(tokens, queries), heads, batch)](
        query, keys, values, query if visible is None else visible.contiguous().view(torch.uint8), output,
        tokens, length, heads, 1.4426950408889634 / head_dim**0.5, *(stride // unit for stride in strides),
        QUERIES=queries, KEYS=tile[1], HEAD=head_dim, DIM=max(16, triton.next_power_of_2(head_dim)),
        UNIT=unit, MASKED=visible is not None, WIDE=not query.is_cuda,
        num_warps=warps, num_stages=3 if tile[1] == 32 else 2,
    )  # fmt: skip
    return output
