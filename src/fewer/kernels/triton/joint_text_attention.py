"""Attention from image tokens to a short text, with the queries' RMS norm applied where they are read.

A program owns one head of one sample: its keys and values stay on the chip, its queries pass by once in each
direction. Keys and values may be parts of longer rows, those of all blocks side by side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.joint_attention import _dot, _part


@triton.jit
def _queries(base, inverse, rows, inside, inner, columns, weight, NORM: tl.constexpr):
    q = _part(base, rows, inside, inner, columns)
    if NORM:
        factor = tl.load(inverse + rows, mask=inside, other=0.0)
        q = (q.to(tl.float32) * factor[:, None] * weight[None, :]).to(base.dtype.element_ty)
    return q


@triton.jit
def _shares(q, k, counts, scale, PRECISION: tl.constexpr):
    """Softmax over the keys that count."""
    scores = _dot(q, tl.trans(k), PRECISION) * scale
    scores = tl.where(counts[None, :], scores, -float("inf"))
    shares = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return shares / tl.sum(shares, axis=1)[:, None]


@triton.jit
def _forward_kernel(
    query, inverse, weight, keys, values, visible, output, tokens, length, inner, scale, text_row,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, LENGTH: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns, word = tl.arange(0, DIM), tl.arange(0, LENGTH)
    there = word < length
    counts = tl.load(visible + batch * length + word, mask=there, other=0) != 0
    k = _part(keys + batch * length * text_row + head * DIM, word, there, text_row, columns)
    v = _part(values + batch * length * text_row + head * DIM, word, there, text_row, columns)
    w = tl.load(weight + head * DIM + columns).to(tl.float32)
    first = batch * tokens * inner + head * DIM
    for block in range(BLOCKS):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        inside = rows < tokens
        q = _queries(query + first, inverse + batch * tokens, rows, inside, inner, columns, w, NORM)
        result = _dot(_shares(q, k, counts, scale, PRECISION), v, PRECISION)
        where = output + first + rows[:, None] * inner + columns[None, :]
        tl.store(where, result.to(output.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _backward_kernel(
    grad, query, inverse, weight, keys, values, visible, g_query, g_keys, g_values,
    tokens, length, inner, scale, text_row, found_row,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, LENGTH: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns, word = tl.arange(0, DIM), tl.arange(0, LENGTH)
    there = word < length
    counts = tl.load(visible + batch * length + word, mask=there, other=0) != 0
    k = _part(keys + batch * length * text_row + head * DIM, word, there, text_row, columns)
    v = _part(values + batch * length * text_row + head * DIM, word, there, text_row, columns)
    w = tl.load(weight + head * DIM + columns).to(tl.float32)
    first = batch * tokens * inner + head * DIM
    sum_k = tl.zeros((LENGTH, DIM), dtype=tl.float32)
    sum_v = tl.zeros((LENGTH, DIM), dtype=tl.float32)
    for block in range(BLOCKS):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        inside = rows < tokens
        q = _queries(query + first, inverse + batch * tokens, rows, inside, inner, columns, w, NORM)
        g = _part(grad + first, rows, inside, inner, columns)
        shares = _shares(q, k, counts, scale, PRECISION)
        sum_v += _dot(tl.trans(shares), g, PRECISION)
        g_shares = _dot(g, tl.trans(v), PRECISION)
        g_scores = shares * (g_shares - tl.sum(g_shares * shares, axis=1)[:, None]) * scale
        sum_k += _dot(tl.trans(g_scores), q, PRECISION)
        g_q = _dot(g_scores, k, PRECISION)
        where = g_query + first + rows[:, None] * inner + columns[None, :]
        tl.store(where, g_q.to(g_query.dtype.element_ty), mask=inside[:, None])
    to = (batch * length + word)[:, None] * found_row + head * DIM + columns[None, :]
    tl.store(g_keys + to, sum_k.to(g_keys.dtype.element_ty), mask=there[:, None])
    tl.store(g_values + to, sum_v.to(g_values.dtype.element_ty), mask=there[:, None])


Tile = tuple[int, int, int, str]
"""Tokens of a block, warps, stages, precision of products of 16-bit inputs (`tf32` or `bf16`)."""
TILE: Tile = (32, 2, 3, "bf16")


def launch_joint_text_attention(
    query: Tensor, inverse: Tensor | None, weight: Tensor | None, keys: Tensor, values: Tensor,
    visible: Tensor, heads: int, tile: Tile = TILE,
) -> Tensor:  # fmt: skip
    """(batch, tokens, inner) queries; (batch, length, inner) keys and values with the same strides."""
    batch, tokens, inner = query.shape
    length = keys.shape[1]
    output = torch.empty_like(query)
    if query.numel():
        _forward_kernel[(heads, batch)](
            query, *_norms(inverse, weight, query), keys, values, visible, output,
            tokens, length, inner, (inner // heads) ** -0.5, keys.stride(1),
            **_shape(query, length, inner // heads, inverse is not None, tile),
        )  # fmt: skip
    return output


def launch_joint_text_attention_backward(
    grad: Tensor, query: Tensor, inverse: Tensor | None, weight: Tensor | None, keys: Tensor, values: Tensor,
    visible: Tensor, heads: int, found: tuple[Tensor, Tensor], tile: Tile = TILE,
) -> Tensor:  # fmt: skip
    """The gradient of the queries after their norm; those of keys and values are written into `found`."""
    batch, tokens, inner = query.shape
    length = keys.shape[1]
    g_query = torch.empty_like(query)
    if query.numel():
        _backward_kernel[(heads, batch)](
            grad, query, *_norms(inverse, weight, query), keys, values, visible, g_query, *found,
            tokens, length, inner, (inner // heads) ** -0.5, keys.stride(1), found[0].stride(1),
            **_shape(query, length, inner // heads, inverse is not None, tile),
        )  # fmt: skip
    return g_query


def _norms(inverse: Tensor | None, weight: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    return (like, like) if inverse is None or weight is None else (inverse, weight)


def _shape(like: Tensor, length: int, dim: int, norm: bool, tile: Tile) -> dict[str, object]:
    block = min(tile[0], max(16, triton.next_power_of_2(like.shape[1])))
    exact = like.dtype == torch.float32 or not like.is_cuda
    return {
        "BLOCKS": triton.cdiv(like.shape[1], block), "BLOCK": block, "DIM": dim, "NORM": norm,
        "LENGTH": max(16, triton.next_power_of_2(length)), "PRECISION": "ieee" if exact else tile[3],
        "num_warps": tile[1], "num_stages": tile[2],
    }  # fmt: skip
