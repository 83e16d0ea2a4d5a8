"""Linear attention of one head of one sample in a program, and its gradients, tokens in blocks of 64."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rows(base, start, tokens, stride, columns, BLOCK: tl.constexpr):
    rows = start + tl.arange(0, BLOCK)
    inside = (rows < tokens)[:, None]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _put(base, values, start, tokens, stride, columns, BLOCK: tl.constexpr):
    rows = start + tl.arange(0, BLOCK)
    where = base + rows[:, None] * stride + columns[None, :]
    tl.store(where, values.to(base.dtype.element_ty), mask=(rows < tokens)[:, None])


@triton.jit
def _forward_kernel(
    query, key, value, output, tokens, eps, row, out_row,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, DIM)
    first, out_first = batch * tokens * row + head * DIM, batch * tokens * out_row + head * DIM
    state = tl.zeros((DIM, DIM), dtype=tl.float32)
    ones = tl.zeros((DIM,), dtype=tl.float32)
    for block in range(BLOCKS):
        k = tl.maximum(_rows(key + first, block * BLOCK, tokens, row, columns, BLOCK), 0.0)
        v = _rows(value + first, block * BLOCK, tokens, row, columns, BLOCK)
        state += tl.dot(tl.trans(k), v, input_precision=PRECISION)
        ones += tl.sum(k, axis=0)
    for block in range(BLOCKS):
        q = tl.maximum(_rows(query + first, block * BLOCK, tokens, row, columns, BLOCK), 0.0)
        below = tl.sum(q * ones[None, :], axis=1) + eps
        result = tl.dot(q, state, input_precision=PRECISION) / below[:, None]
        _put(output + out_first, result, block * BLOCK, tokens, out_row, columns, BLOCK)


@triton.jit
def _backward_kernel(
    grad, query, key, value, grad_query, grad_key, grad_value, tokens, eps, row, out_row,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, DIM)
    first, out_first = batch * tokens * row + head * DIM, batch * tokens * out_row + head * DIM
    state = tl.zeros((DIM, DIM), dtype=tl.float32)
    ones = tl.zeros((DIM,), dtype=tl.float32)
    for block in range(BLOCKS):
        k = tl.maximum(_rows(key + first, block * BLOCK, tokens, row, columns, BLOCK), 0.0)
        v = _rows(value + first, block * BLOCK, tokens, row, columns, BLOCK)
        state += tl.dot(tl.trans(k), v, input_precision=PRECISION)
        ones += tl.sum(k, axis=0)
    g_state = tl.zeros((DIM, DIM), dtype=tl.float32)
    g_ones = tl.zeros((DIM,), dtype=tl.float32)
    for block in range(BLOCKS):
        raw = _rows(query + first, block * BLOCK, tokens, row, columns, BLOCK)
        q = tl.maximum(raw, 0.0)
        below = tl.sum(q * ones[None, :], axis=1) + eps
        g = _rows(grad + out_first, block * BLOCK, tokens, out_row, columns, BLOCK) / below[:, None]
        top = tl.dot(q, state, input_precision=PRECISION)
        g_below = 0.0 - tl.sum(g * top, axis=1) / below
        g_q = tl.dot(g, tl.trans(state), input_precision=PRECISION) + g_below[:, None] * ones[None, :]
        g_state += tl.dot(tl.trans(q), g, input_precision=PRECISION)
        g_ones += tl.sum(q * g_below[:, None], axis=0)
        g_q = tl.where(raw > 0, g_q, 0.0)
        _put(grad_query + out_first, g_q, block * BLOCK, tokens, out_row, columns, BLOCK)
    for block in range(BLOCKS):
        raw = _rows(key + first, block * BLOCK, tokens, row, columns, BLOCK)
        v = _rows(value + first, block * BLOCK, tokens, row, columns, BLOCK)
        g_k = tl.dot(v, tl.trans(g_state), input_precision=PRECISION) + g_ones[None, :]
        g_k = tl.where(raw > 0, g_k, 0.0)
        _put(grad_key + out_first, g_k, block * BLOCK, tokens, out_row, columns, BLOCK)
        g_v = tl.dot(tl.maximum(raw, 0.0), g_state, input_precision=PRECISION)
        _put(grad_value + out_first, g_v, block * BLOCK, tokens, out_row, columns, BLOCK)


def launch_short_attention(query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    """(batch, tokens, heads, dim), dim a power of two from 16 on -> the same shape."""
    query, key, value = _rows_alike(query, key, value)
    batch, tokens, heads, dim = query.shape
    output = torch.empty((batch, tokens, heads, dim), dtype=query.dtype, device=query.device)
    if output.numel():
        _forward_kernel[(heads, batch)](
            query, key, value, output, tokens, eps, query.stride(1), heads * dim, **_shape(tokens, dim, query)
        )
    return output


def launch_short_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each contiguous."""
    query, key, value = _rows_alike(query, key, value)
    batch, tokens, heads, dim = query.shape
    found = [torch.empty((batch, tokens, heads, dim), dtype=query.dtype, device=query.device) for _ in "qkv"]
    if query.numel():
        _backward_kernel[(heads, batch)](
            grad.contiguous(), query, key, value, *found, tokens, eps, query.stride(1), heads * dim,
            **_shape(tokens, dim, query),
        )  # fmt: skip
    return found[0], found[1], found[2]


def _shape(tokens: int, dim: int, like: Tensor) -> dict[str, object]:
    block = min(64, max(16, triton.next_power_of_2(tokens)))
    exact = like.dtype == torch.float32 or not like.is_cuda
    return {
        "BLOCKS": triton.cdiv(tokens, block),
        "BLOCK": block,
        "DIM": dim,
        "PRECISION": "ieee" if exact else "tf32",
        "num_warps": 4,
    }


def _rows_alike(*tensors: Tensor) -> list[Tensor]:
    """The same with one layout: heads side by side in a row of any length."""
    first = tensors[0]
    alike = len({tensor.stride() for tensor in tensors}) == 1
    whole = first.stride(0) == first.shape[1] * first.stride(1)
    plain = first.stride(3) == 1 and first.stride(2) == first.shape[3] and whole
    return list(tensors) if alike and plain else [tensor.contiguous() for tensor in tensors]
