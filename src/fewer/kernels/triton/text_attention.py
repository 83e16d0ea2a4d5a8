"""Softmax attention of one head of one sample to a short text, and its gradients, queries in blocks of 64."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _weights(q, k, counts, scale, PRECISION: tl.constexpr):
    """Softmax over the keys that count."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(counts[None, :], scores, -float("inf"))
    shares = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return shares / tl.sum(shares, axis=1)[:, None]


@triton.jit
def _forward_kernel(
    query, keys, values, visible, output, tokens, length, scale, row, text_row, out_row,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, LENGTH: tl.constexpr, DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns, word = head * DIM + tl.arange(0, DIM), tl.arange(0, LENGTH)
    there = word < length
    counts = tl.load(visible + batch * length + word, mask=there, other=0) != 0
    place = (batch * length + word)[:, None] * text_row + columns[None, :]
    k = tl.load(keys + place, mask=there[:, None], other=0.0).to(tl.float32)
    v = tl.load(values + place, mask=there[:, None], other=0.0).to(tl.float32)
    for block in range(BLOCKS):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        inside = (rows < tokens)[:, None]
        q = tl.load(
            query + (batch * tokens + rows)[:, None] * row + columns[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        weights = _weights(q, k, counts, scale, PRECISION)
        result = tl.dot(weights, v, input_precision=PRECISION)
        where = output + (batch * tokens + rows)[:, None] * out_row + columns[None, :]
        tl.store(where, result.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    grad, query, keys, values, visible, grad_query, grad_keys, grad_values,
    tokens, length, scale, row, text_row, out_row,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, LENGTH: tl.constexpr, DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns, word = head * DIM + tl.arange(0, DIM), tl.arange(0, LENGTH)
    there = word < length
    counts = tl.load(visible + batch * length + word, mask=there, other=0) != 0
    place = (batch * length + word)[:, None] * text_row + columns[None, :]
    k = tl.load(keys + place, mask=there[:, None], other=0.0).to(tl.float32)
    v = tl.load(values + place, mask=there[:, None], other=0.0).to(tl.float32)
    g_k = tl.zeros((LENGTH, DIM), dtype=tl.float32)
    g_v = tl.zeros((LENGTH, DIM), dtype=tl.float32)
    for block in range(BLOCKS):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        inside = (rows < tokens)[:, None]
        q = tl.load(
            query + (batch * tokens + rows)[:, None] * row + columns[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        where = (batch * tokens + rows)[:, None] * out_row + columns[None, :]
        g = tl.load(grad + where, mask=inside, other=0.0).to(tl.float32)
        weights = _weights(q, k, counts, scale, PRECISION)
        g_v += tl.dot(tl.trans(weights), g, input_precision=PRECISION)
        g_weights = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        g_scores = weights * (g_weights - tl.sum(g_weights * weights, axis=1)[:, None]) * scale
        g_k += tl.dot(tl.trans(g_scores), q, input_precision=PRECISION)
        g_q = tl.dot(g_scores, k, input_precision=PRECISION)
        tl.store(grad_query + where, g_q.to(grad_query.dtype.element_ty), mask=inside)
    to = (batch * length + word)[:, None] * out_row + columns[None, :]
    tl.store(grad_keys + to, g_k.to(grad_keys.dtype.element_ty), mask=there[:, None])
    tl.store(grad_values + to, g_v.to(grad_values.dtype.element_ty), mask=there[:, None])


def launch_text_attention(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """(batch, tokens, heads, dim) queries, dim a power of two from 16; keys and values of `length` words."""
    query, keys, values = (tensor.contiguous() for tensor in (query, keys, values))
    batch, _, heads, _ = query.shape
    output = torch.empty_like(query)
    if output.numel():
        _forward_kernel[(heads, batch)](
            query, keys, values, visible.contiguous(), output, *_sizes(query, keys), **_shape(query, keys)
        )
    return output


def launch_text_attention_backward(
    grad: Tensor, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, keys and values, each contiguous."""
    grad, query, keys, values = (tensor.contiguous() for tensor in (grad, query, keys, values))
    batch, _, heads, _ = query.shape
    found = torch.empty_like(query), torch.empty_like(keys), torch.empty_like(values)
    if query.numel():
        _backward_kernel[(heads, batch)](
            grad, query, keys, values, visible.contiguous(), *found, *_sizes(query, keys),
            **_shape(query, keys),
        )  # fmt: skip
    return found


def _sizes(query: Tensor, keys: Tensor) -> tuple[int, int, float, int, int, int]:
    _, tokens, heads, dim = query.shape
    return tokens, keys.shape[1], dim**-0.5, heads * dim, heads * dim, heads * dim


def _shape(query: Tensor, keys: Tensor) -> dict[str, object]:
    tokens, dim = query.shape[1], query.shape[3]
    block = min(64, max(16, triton.next_power_of_2(tokens)))
    exact = query.dtype == torch.float32 or not query.is_cuda
    return {
        "BLOCKS": triton.cdiv(tokens, block),
        "BLOCK": block,
        "LENGTH": max(16, triton.next_power_of_2(keys.shape[1])),
        "DIM": dim,
        "PRECISION": "ieee" if exact else "tf32",
        "num_warps": 4,
    }
