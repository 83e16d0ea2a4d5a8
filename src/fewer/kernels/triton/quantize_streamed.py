"""K1 for rows too wide for registers: sixteen of them pass through a program in pieces, projected on the way.

What is read first comes from memory, what is read again from the L2 cache, so that the projection costs no
pass over memory of its own. A sum is stored before it is read again; a norm takes a reading more. Its spread
is counted about the mean of the first piece, so that a large mean takes nothing from it.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.chain import chained, follow
from fewer.kernels.triton.rows import round_half_even

ROWS = 16
"""The smallest side of a tensor-core product."""
LEAST, WIDEST = 1536, 4096
"""Below, rows stay in registers; above, all that are at work at one time do not fit into the L2 cache."""


@triton.jit
def _piece(x, shift, scale, mean, spread, row, batch, alive, columns, dim, shift_b, scale_b,
           NORM: tl.constexpr):  # fmt: skip
    """Some columns of the rows in fp32, normalised and modulated; zero where there are none."""
    inside = alive[:, None] & (columns < dim)[None, :]
    v = tl.load(x + row[:, None] * dim + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORM:
        a = tl.load(scale + batch[:, None] * scale_b + columns[None, :], mask=inside, other=0.0)
        b = tl.load(shift + batch[:, None] * shift_b + columns[None, :], mask=inside, other=0.0)
        v = (v - mean[:, None]) * spread[:, None] * (1.0 + a.to(tl.float32)) + b.to(tl.float32)
        v = tl.where(inside, v, 0.0)
    return v


@triton.jit
def _smooth(v, inverse, columns, dim, SMOOTH: tl.constexpr):
    if SMOOTH:
        v = v * tl.load(inverse + columns, mask=columns < dim, other=1.0).to(tl.float32)[None, :]
    return v


@triton.jit
def _sum_and_spread(x, update, gate, total, row, batch, alive, dim, eps, gate_b,
                    ROWS: tl.constexpr, PIECE: tl.constexpr, UPDATE: tl.constexpr, GATE: tl.constexpr,
                    STAGES: tl.constexpr):  # fmt: skip
    """Stores the sum where there is one; mean of the rows, and one over their spread."""
    first = tl.zeros((ROWS,), dtype=tl.float32)
    ones, squares = first, first
    for start in tl.range(0, dim, PIECE, num_stages=STAGES):  # pyright: ignore
        columns = start + tl.arange(0, PIECE)
        inside = alive[:, None] & (columns < dim)[None, :]
        where = row[:, None] * dim + columns[None, :]
        v = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
        if UPDATE:
            u = tl.load(update + where, mask=inside, other=0.0).to(tl.float32)
            if GATE:
                vector = gate + batch[:, None] * gate_b + columns[None, :]
                u *= tl.load(vector, mask=inside, other=0.0).to(tl.float32)
            rounded = (v + u).to(total.dtype.element_ty)
            tl.store(total + where, rounded, mask=inside)
            v = rounded.to(tl.float32)
        if start == 0:
            first = tl.sum(v, axis=1) / tl.minimum(dim, PIECE)
        v = tl.where(inside, v - first[:, None], 0.0)
        ones += tl.sum(v, axis=1)
        squares += tl.sum(v * v, axis=1)
    if UPDATE:
        # Other threads of the program read what these have stored.
        tl.debug_barrier()
    off = ones / dim
    return first + off, 1.0 / tl.sqrt(tl.maximum(squares / dim - off * off, 0.0) + eps)


@triton.jit
def _streamed_kernel(
    x, inverse, down, shift, scale, update, gate, codes, row_scale, projected, total,
    rows, dim, rank, tokens, eps, shift_b, scale_b, gate_b,
    ROWS: tl.constexpr, PIECE: tl.constexpr, RANK: tl.constexpr, NORM: tl.constexpr, SMOOTH: tl.constexpr,
    UPDATE: tl.constexpr, GATE: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    follow(CHAIN)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive, batch = row < rows, tl.minimum(row, rows - 1) // tokens
    mean = tl.zeros((ROWS,), dtype=tl.float32)
    spread = mean
    if NORM or UPDATE:
        mean, spread = _sum_and_spread(
            x, update, gate, total, row, batch, alive, dim, eps, gate_b, ROWS, PIECE, UPDATE, GATE, STAGES
        )
    source = total if UPDATE else x
    low, largest = tl.zeros((ROWS, RANK), dtype=tl.float32), tl.zeros((ROWS,), dtype=tl.float32)
    ranks = tl.arange(0, RANK)
    for start in tl.range(0, dim, PIECE, num_stages=STAGES):  # pyright: ignore
        columns = start + tl.arange(0, PIECE)
        v = _piece(
            source, shift, scale, mean, spread, row, batch, alive, columns, dim, shift_b, scale_b, NORM
        )
        mask = (ranks < rank)[None, :] & (columns < dim)[:, None]
        factor = tl.load(down + ranks[None, :] * dim + columns[:, None], mask=mask, other=0.0)
        if WIDE:  # the interpreter cannot multiply bf16
            factor = factor.to(tl.float32)
        low = tl.dot(v.to(factor.dtype), factor, acc=low, input_precision="ieee")
        largest = tl.maximum(largest, tl.max(tl.abs(_smooth(v, inverse, columns, dim, SMOOTH)), axis=1))
    where = projected + row[:, None] * rank + ranks[None, :]
    tl.store(where, low.to(projected.dtype.element_ty), mask=alive[:, None] & (ranks < rank)[None, :])
    size = largest / 127.0
    tl.store(row_scale + row, size, mask=alive)
    unit = 1.0 / tl.where(size > 0.0, size, 1.0)
    for start in tl.range(0, dim, PIECE, num_stages=STAGES):  # pyright: ignore
        columns = start + tl.arange(0, PIECE)
        v = _piece(
            source, shift, scale, mean, spread, row, batch, alive, columns, dim, shift_b, scale_b, NORM
        )
        code = round_half_even(_smooth(v, inverse, columns, dim, SMOOTH) * unit[:, None])
        code = tl.minimum(tl.maximum(code, -127.0), 127.0).to(tl.int8)
        inside = alive[:, None] & (columns < dim)[None, :]
        tl.store(codes + row[:, None] * dim + columns[None, :], code, mask=inside)


def fits_streamed(rows: Tensor) -> bool:
    """Whether rows are read this way unless told otherwise: on a GPU, and only with `FEWER_STREAMED=1`."""
    wide = LEAST < rows.shape[1] <= WIDEST and rows.dtype.itemsize == 2
    return rows.is_cuda and wide and os.environ.get("FEWER_STREAMED") == "1"


def launch_streamed(
    operands: tuple[object, ...],
    count: int,
    ranks: int,
    flags: dict[str, bool],
    device: torch.device,
    piece: int = 128,
    warps: int = 4,
    stages: int = 4,
) -> None:
    """`operands` are the kernel's in its order, `ranks` the tile of the projection."""
    _streamed_kernel[(triton.cdiv(count, ROWS),)](
        *operands, ROWS=ROWS, PIECE=piece, RANK=ranks, STAGES=stages, WIDE=device.type != "cuda",
        num_warps=warps, **flags, **chained(device),
    )  # fmt: skip
