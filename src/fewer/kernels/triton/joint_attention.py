"""Linear attention that reads queries, keys and values from the rows of one product, and its gradients.

RMS norms of queries and keys are applied where they are read, so that normalised ones are never written; a
program owns one head of one sample, and the state that the forward pass made serves the backward pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.modulation import fitted


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """Product in fp32, tf32 or, for `bf16`, of operands rounded to that."""
    if PRECISION == "bf16":
        found = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        found = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    return found


@triton.jit
def _part(base, rows, inside, stride, columns):
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _scaled(base, rows, inside, stride, columns, inverse, weight, NORM: tl.constexpr):
    """Queries or keys after their norm, rounded as they would be in memory."""
    raw = _part(base, rows, inside, stride, columns)
    if NORM:
        factor = tl.load(inverse + rows * 2, mask=inside, other=0.0)
        raw = (raw.to(tl.float32) * factor[:, None] * weight[None, :]).to(base.dtype.element_ty)
    return raw


@triton.jit
def _inverse_kernel(x, inverse, rows, dim, stride, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (columns < dim)[None, :]
    part = tl.program_id(1)
    v = tl.load(
        x + row.to(tl.int64)[:, None] * stride + part * dim + columns[None, :], mask=inside, other=0.0
    ).to(tl.float32)
    found = 1.0 / tl.sqrt(tl.sum(v * v, axis=1) / dim + eps)
    tl.store(inverse + row * tl.num_programs(1) + part, found, mask=row < rows)


@triton.jit
def _forward_kernel(
    joint, inverse, weight_q, weight_k, output, states, tokens, inner, eps,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns, row = tl.arange(0, DIM), 3 * inner
    joint, output = joint + batch * tokens * row + head * DIM, output + batch * tokens * inner + head * DIM
    inverse += batch * tokens * 2
    w_q = tl.load(weight_q + head * DIM + columns).to(tl.float32)
    w_k = tl.load(weight_k + head * DIM + columns).to(tl.float32)
    state = tl.zeros((DIM, DIM), dtype=tl.float32)
    ones = tl.zeros((DIM,), dtype=tl.float32)
    for block in range(BLOCKS):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        inside = rows < tokens
        k = _scaled(joint + inner, rows, inside, row, columns, inverse + 1, w_k, NORM)
        v = _part(joint + 2 * inner, rows, inside, row, columns)
        k = tl.maximum(k.to(tl.float32), 0.0)
        state += _dot(tl.trans(k), v, PRECISION)
        ones += tl.sum(k, axis=0)
    place = states + (batch * tl.num_programs(0) + head) * (DIM + 1) * DIM
    tl.store(place + columns[:, None] * DIM + columns[None, :], state)
    tl.store(place + DIM * DIM + columns, ones)
    for block in range(BLOCKS):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        inside = rows < tokens
        q = _scaled(joint, rows, inside, row, columns, inverse, w_q, NORM).to(tl.float32)
        q = tl.maximum(q, 0.0)
        below = tl.sum(q * ones[None, :], axis=1) + eps
        result = _dot(q, state, PRECISION) / below[:, None]
        where = output + rows[:, None] * inner + columns[None, :]
        tl.store(where, result.to(output.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _backward_kernel(
    grad, joint, inverse, weight_q, weight_k, states, found, tokens, inner, eps,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns, row = tl.arange(0, DIM), 3 * inner
    joint, found = joint + batch * tokens * row + head * DIM, found + batch * tokens * row + head * DIM
    grad += batch * tokens * inner + head * DIM
    inverse += batch * tokens * 2
    w_q = tl.load(weight_q + head * DIM + columns).to(tl.float32)
    w_k = tl.load(weight_k + head * DIM + columns).to(tl.float32)
    place = states + (batch * tl.num_programs(0) + head) * (DIM + 1) * DIM
    state = tl.load(place + columns[:, None] * DIM + columns[None, :])
    ones = tl.load(place + DIM * DIM + columns)
    kind = found.dtype.element_ty
    g_state = tl.zeros((DIM, DIM), dtype=tl.float32)
    g_ones = tl.zeros((DIM,), dtype=tl.float32)
    for block in range(BLOCKS):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        inside = rows < tokens
        raw = _scaled(joint, rows, inside, row, columns, inverse, w_q, NORM).to(tl.float32)
        q = tl.maximum(raw, 0.0)
        below = tl.sum(q * ones[None, :], axis=1) + eps
        g = _part(grad, rows, inside, inner, columns).to(tl.float32) / below[:, None]
        top = _dot(q, state, PRECISION)
        g_below = 0.0 - tl.sum(g * top, axis=1) / below
        g_q = _dot(g, tl.trans(state), PRECISION) + g_below[:, None] * ones[None, :]
        g_state += _dot(tl.trans(q), g, PRECISION)
        g_ones += tl.sum(q * g_below[:, None], axis=0)
        g_q = tl.where(raw > 0, g_q, 0.0)
        where = found + rows[:, None] * row + columns[None, :]
        tl.store(where, g_q.to(kind), mask=inside[:, None])
    for block in range(BLOCKS):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        inside = rows < tokens
        raw = _scaled(joint + inner, rows, inside, row, columns, inverse + 1, w_k, NORM).to(tl.float32)
        v = _part(joint + 2 * inner, rows, inside, row, columns).to(tl.float32)
        g_k = _dot(v, tl.trans(g_state), PRECISION) + g_ones[None, :]
        g_k = tl.where(raw > 0, g_k, 0.0)
        g_v = _dot(tl.maximum(raw, 0.0), g_state, PRECISION)
        where = found + inner + rows[:, None] * row + columns[None, :]
        tl.store(where, g_k.to(kind), mask=inside[:, None])
        tl.store(where + inner, g_v.to(kind), mask=inside[:, None])


@triton.jit
def _norm_backward_kernel(
    x, inverse, weight_0, weight_1, grad, sums, rows, dim, stride,
    ROWS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part, parts = tl.program_id(1), tl.num_programs(1)
    columns = tl.arange(0, BLOCK)
    alive = columns < dim
    w = tl.load(tl.where(part == 0, weight_0, weight_1) + columns, mask=alive, other=0.0).to(tl.float32)
    of_weight = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    of_bias = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for step in range(STEPS):
        row = ((tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & alive[None, :]
        place = row[:, None] * stride + part * dim + columns[None, :]
        factor = tl.load(inverse + row * parts + part, mask=row < rows, other=0.0)
        v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        of_weight += g * v
        g = g * w[None, :]
        along = tl.sum(g * v, axis=1) / dim
        g = (g - v * along[:, None]) * factor[:, None]
        of_bias += g
        tl.store(grad + place, g.to(grad.dtype.element_ty), mask=inside)
    own = sums + (tl.program_id(0) * parts + part) * 2 * dim + columns
    tl.store(own, tl.sum(of_weight, axis=0), mask=alive)
    tl.store(own + dim, tl.sum(of_bias, axis=0), mask=alive)


Tile = tuple[int, int, int, str]
"""Tokens of a block, warps, stages, precision of products of 16-bit inputs (`tf32` or `bf16`)."""
TILE: Tile = (64, 2, 3, "bf16")


def launch_inverse(joint: Tensor, dim: int, parts: int, eps: float) -> Tensor:
    """1 / root of the mean square of the first `parts` pieces of `dim` in rows: (rows, parts)."""
    rows = joint.shape[0]
    inverse = torch.empty((rows, parts), dtype=torch.float32, device=joint.device)
    if rows:
        _inverse_kernel[(triton.cdiv(rows, 4), parts)](
            joint, inverse, rows, dim, joint.stride(0), eps, ROWS=4, BLOCK=triton.next_power_of_2(dim),
            num_warps=4,
        )  # fmt: skip
    return inverse


NORM_BACKWARD = (1, 32, 1)
"""Rows of a block, blocks that a program walks over, warps."""


def launch_norm_backward_(
    grad: Tensor, joint: Tensor, inverse: Tensor, weights: tuple[Tensor, ...],
    tile: tuple[int, int, int] = NORM_BACKWARD,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Turns the gradients behind the RMS norms, in rows like `joint`, into those before them, in place.

    Returns (parts, dim) gradients of the weights, and the sums over rows of what is in place now.
    """
    (rows, parts), dim = inverse.shape, weights[0].shape[0]
    (per, steps, warps), block = fitted(tile, dim)
    programs = triton.cdiv(rows, per * steps)
    sums = torch.empty((programs, parts, 2, dim), dtype=torch.float32, device=grad.device)
    if rows:
        _norm_backward_kernel[(programs, parts)](
            joint, inverse, weights[0], weights[-1], grad, sums, rows, dim, joint.stride(0),
            ROWS=per, STEPS=steps, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    of_weight, of_bias = sums.sum(dim=0).unbind(1)
    return of_weight, of_bias


def launch_joint_attention(
    joint: Tensor, inverse: Tensor | None, weights: tuple[Tensor, Tensor] | None, heads: int, eps: float,
    tile: Tile = TILE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(batch, tokens, 3·inner) -> (batch, tokens, inner) and the states."""
    batch, tokens, inner = joint.shape[0], joint.shape[1], joint.shape[2] // 3
    dim = inner // heads
    output = torch.empty((batch, tokens, inner), dtype=joint.dtype, device=joint.device)
    states = torch.empty((batch, heads, dim + 1, dim), dtype=torch.float32, device=joint.device)
    if joint.numel():
        _forward_kernel[(heads, batch)](
            joint, *_norms(inverse, weights, joint), output, states, tokens, inner, eps,
            **_shape(joint, dim, inverse is not None, tile),
        )  # fmt: skip
    return output, states


def launch_joint_attention_backward(
    grad: Tensor, joint: Tensor, inverse: Tensor | None, weights: tuple[Tensor, Tensor] | None,
    states: Tensor, eps: float, tile: Tile = TILE,
) -> Tensor:  # fmt: skip
    """The gradient of the joint rows, that of queries and keys as they are after their norms."""
    batch, tokens, inner = joint.shape[0], joint.shape[1], joint.shape[2] // 3
    heads, dim = states.shape[1], states.shape[3]
    found = torch.empty_like(joint)
    if joint.numel():
        _backward_kernel[(heads, batch)](
            grad, joint, *_norms(inverse, weights, joint), states, found, tokens, inner, eps,
            **_shape(joint, dim, inverse is not None, tile),
        )  # fmt: skip
    return found


def _norms(inverse: Tensor | None, weights: tuple[Tensor, Tensor] | None, like: Tensor) -> tuple[Tensor, ...]:
    if inverse is None or weights is None:
        return like, like, like  # never used, but read: as long as a row of heads
    return inverse, *weights


def _shape(like: Tensor, dim: int, norm: bool, tile: Tile) -> dict[str, object]:
    tokens = like.shape[1]
    block = min(tile[0], max(16, triton.next_power_of_2(tokens)))
    exact = like.dtype == torch.float32 or not like.is_cuda
    return {
        "BLOCKS": triton.cdiv(tokens, block), "BLOCK": block, "DIM": dim, "NORM": norm,
        "PRECISION": "ieee" if exact else tile[3], "num_warps": tile[1], "num_stages": tile[2],
    }  # fmt: skip
