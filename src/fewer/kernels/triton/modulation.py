"""Gated sum, LayerNorm and modulation of many rows a program, and all their gradients in one pass backward.

Sums over a picture's tokens (gradients of shift, scale, gate and of the bias behind the update) are kept per
row of a program's block while it walks over its rows, folded once at its end, and added up by torch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _block(base, rows, dim, inside, columns):
    return tl.load(base + rows[:, None] * dim + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _vector(base, batch, stride, columns, dim):
    return tl.load(base + batch * stride + columns, mask=columns < dim, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _statistics(v, inside, dim, eps):
    """Of rows: normalised values and one over their deviation."""
    mean = tl.sum(v, axis=1) / dim
    v = tl.where(inside, v - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(v * v, axis=1) / dim + eps)
    return v * inverse[:, None], inverse


@triton.jit
def _forward_kernel(
    x, update, gate, shift, scale, total, out, tokens, dim, eps, gate_b, shift_b, scale_b,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, UPDATE: tl.constexpr, GATE: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    token, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside, rows = (token < tokens)[:, None] & (columns < dim)[None, :], batch * tokens + token
    v = _block(x, rows, dim, inside, columns)
    if UPDATE:
        u = _block(update, rows, dim, inside, columns)
        if GATE:
            u = u * _vector(gate, batch, gate_b, columns, dim)
        rounded = (v + u).to(total.dtype.element_ty)
        tl.store(total + rows[:, None] * dim + columns[None, :], rounded, mask=inside)
        v = rounded.to(tl.float32)
    if NORM:
        v, _ = _statistics(v, inside, dim, eps)
        v = v * (1.0 + _vector(scale, batch, scale_b, columns, dim)) + _vector(
            shift, batch, shift_b, columns, dim
        )
        tl.store(out + rows[:, None] * dim + columns[None, :], v.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    total, g_total, g_out, update, gate, scale, found, g_update, sums, tokens, dim, eps, gate_b, scale_b,
    ROWS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
    UPDATE: tl.constexpr, GATE: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    chunk, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    zero = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    of_shift, of_scale, of_gate, of_bias = zero, zero, zero, zero
    if NORM:
        factor = 1.0 + _vector(scale, batch, scale_b, columns, dim)
    if GATE:
        gates = _vector(gate, batch, gate_b, columns, dim)
    for step in range(STEPS):
        token = (chunk * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside, rows = (token < tokens)[:, None] & (columns < dim)[None, :], batch * tokens + token
        place = rows[:, None] * dim + columns[None, :]
        g = _block(g_total, rows, dim, inside, columns)
        if NORM:
            v = _block(total, rows, dim, inside, columns)
            above = _block(g_out, rows, dim, inside, columns)
            v, inverse = _statistics(v, inside, dim, eps)
            of_shift += above
            of_scale += above * v
            above = above * factor
            mean = tl.sum(above, axis=1) / dim
            along = tl.sum(above * v, axis=1) / dim
            g += inverse[:, None] * (above - mean[:, None] - v * along[:, None])
            g = tl.where(inside, g, 0.0)
            tl.store(found + place, g.to(found.dtype.element_ty), mask=inside)
        if GATE:
            u = _block(update, rows, dim, inside, columns)
            of_gate += g * u
            g = g * gates
            tl.store(g_update + place, g.to(g_update.dtype.element_ty), mask=inside)
        if UPDATE:
            of_bias += g
    own = sums + (batch * tl.num_programs(0) + chunk) * 4 * dim + columns
    there = columns < dim
    if NORM:
        tl.store(own, tl.sum(of_shift, axis=0), mask=there)
        tl.store(own + dim, tl.sum(of_scale, axis=0), mask=there)
    if GATE:
        tl.store(own + 2 * dim, tl.sum(of_gate, axis=0), mask=there)
    if UPDATE:
        tl.store(own + 3 * dim, tl.sum(of_bias, axis=0), mask=there)


Tile = tuple[int, int, int]
"""Rows of a block, blocks that a program walks over, warps."""
FORWARD: Tile = (4, 1, 2)
BACKWARD: Tile = (2, 16, 1)


def fitted(tile: Tile, dim: int) -> tuple[Tile, int]:
    """The tile for rows of this width, and their width rounded up: wide ones come fewer to a block."""
    rows, steps, warps = tile
    block = triton.next_power_of_2(dim)
    fewer = max(1, rows * 512 // max(block, 512))
    wider = max(1, fewer * max(block, 512) // (rows * 512))  # one row may be more than there was
    return (fewer, steps * rows // fewer, min(16, warps * wider)), block


def launch_gated_norm(
    x: Tensor, update: Tensor | None, gate: Tensor | None, shift: Tensor | None, scale: Tensor | None,
    eps: float, tile: Tile = FORWARD,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `reference_gated_norm`; (batch, tokens, dim) tensors, (batch, dim) vectors with any batch stride."""
    batch, tokens, dim = x.shape
    total = x if update is None else torch.empty_like(x)
    out = total if scale is None else torch.empty_like(x)
    (rows, _, warps), block = fitted(tile, dim)
    if x.numel():
        _forward_kernel[(triton.cdiv(tokens, rows), batch)](
            x, _or(update, x), _or(gate, x), _or(shift, x), _or(scale, x), total, out, tokens, dim, eps,
            *(0 if vector is None else vector.stride(0) for vector in (gate, shift, scale)),
            ROWS=rows, BLOCK=block, UPDATE=update is not None,
            GATE=gate is not None, NORM=scale is not None, num_warps=warps,
        )  # fmt: skip
    return total, out


def launch_gated_norm_backward(
    g_total: Tensor, g_out: Tensor | None, total: Tensor, update: Tensor | None, gate: Tensor | None,
    scale: Tensor | None, eps: float, tile: Tile = BACKWARD,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x and of the update; and (4, batch, dim): those of shift, scale, gate, and the sum of the
    update's over its tokens. What is absent has no gradient, and its sums are undefined.
    """
    batch, tokens, dim = g_total.shape
    (rows, steps, warps), block = fitted(tile, dim)
    steps = min(steps, triton.cdiv(tokens, rows))
    chunks = triton.cdiv(tokens, rows * steps)
    found = g_total if scale is None else torch.empty_like(g_total)
    g_update = found if gate is None else torch.empty_like(g_total)
    sums = torch.empty((batch, chunks, 4, dim), dtype=torch.float32, device=g_total.device)
    if g_total.numel():
        _backward_kernel[(chunks, batch)](
            total, g_total, _or(g_out, total), _or(update, total), _or(gate, total), _or(scale, total),
            found, g_update, sums, tokens, dim, eps,
            *(0 if vector is None else vector.stride(0) for vector in (gate, scale)),
            ROWS=rows, STEPS=steps, BLOCK=block, UPDATE=True,
            GATE=gate is not None, NORM=scale is not None, num_warps=warps,
        )  # fmt: skip
    return found, g_update, sums.sum(dim=1).transpose(0, 1)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """What is absent is never read; a pointer has to be there all the same."""
    return other if tensor is None else tensor
