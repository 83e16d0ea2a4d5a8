"""K1 in Triton: a program owns a few whole rows; statistics, projection and codes come from chunks of them.

The rows are read up to three times, but from the cache: a program's rows are at most some 100 KiB.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def round_half_even(x):
    """Exact for |x| < 2**22: adding 1.5 · 2**23 leaves no bits for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _chunk(x, shift, scale, row, batch, columns, inside, mean, spread, dim, NORM: tl.constexpr):
    """One chunk of the rows in fp32, after norm and modulation."""
    v = tl.load(x + row[:, None] * dim + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORM:
        where = batch[:, None] * dim + columns[None, :]
        a = tl.load(scale + where, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(shift + where, mask=inside, other=0.0).to(tl.float32)
        v = (v - mean[:, None]) * spread[:, None] * (1.0 + a) + b
        v = tl.where(inside, v, 0.0)
    return v


@triton.jit
def _quantize_rows_kernel(
    x, smooth, down, shift, scale, codes, row_scale, projected, rows, dim, rank, tokens, eps,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, RANK: tl.constexpr,
    NORM: tl.constexpr, SMOOTH: tl.constexpr, DOWN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    batch = row // tokens
    alive = row < rows
    mean = tl.zeros((ROWS,), dtype=tl.float32)
    spread = tl.zeros((ROWS,), dtype=tl.float32)
    if NORM:
        for start in range(0, dim, CHUNK):
            columns = start + tl.arange(0, CHUNK)
            inside = alive[:, None] & (columns < dim)[None, :]
            v = tl.load(x + row[:, None] * dim + columns[None, :], mask=inside, other=0.0).to(tl.float32)
            mean += tl.sum(v, axis=1)
        mean = mean / dim
        for start in range(0, dim, CHUNK):
            columns = start + tl.arange(0, CHUNK)
            inside = alive[:, None] & (columns < dim)[None, :]
            v = tl.load(x + row[:, None] * dim + columns[None, :], mask=inside, other=0.0).to(tl.float32)
            v = tl.where(inside, v - mean[:, None], 0.0)
            spread += tl.sum(v * v, axis=1)
        spread = 1.0 / tl.sqrt(spread / dim + eps)
    largest = tl.zeros((ROWS,), dtype=tl.float32)
    ranks = tl.arange(0, RANK)
    total = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, dim, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        inside = alive[:, None] & (columns < dim)[None, :]
        v = _chunk(x, shift, scale, row, batch, columns, inside, mean, spread, dim, NORM)
        if DOWN:
            where = ranks[None, :] * dim + columns[:, None]
            mask = (ranks < rank)[None, :] & (columns < dim)[:, None]
            factor = tl.load(down + where, mask=mask, other=0.0)
            if WIDE:  # the interpreter cannot multiply bf16
                factor = factor.to(tl.float32)
            total += tl.dot(v.to(factor.dtype), factor, input_precision="ieee")
        if SMOOTH:
            v = v / tl.load(smooth + columns, mask=columns < dim, other=1.0).to(tl.float32)[None, :]
        largest = tl.maximum(largest, tl.max(tl.abs(v), axis=1))
    size = largest / 127.0
    tl.store(row_scale + row, size, mask=alive)
    if DOWN:
        mask = alive[:, None] & (ranks < rank)[None, :]
        tl.store(projected + row[:, None] * rank + ranks[None, :], total, mask=mask)
    divisor = tl.where(size > 0.0, size, 1.0)
    for start in range(0, dim, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        inside = alive[:, None] & (columns < dim)[None, :]
        v = _chunk(x, shift, scale, row, batch, columns, inside, mean, spread, dim, NORM)
        if SMOOTH:
            v = v / tl.load(smooth + columns, mask=columns < dim, other=1.0).to(tl.float32)[None, :]
        code = tl.minimum(tl.maximum(round_half_even(v / divisor[:, None]), -127.0), 127.0)
        tl.store(codes + row[:, None] * dim + columns[None, :], code.to(tl.int8), mask=inside)


def launch_quantize_rows(
    rows: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference_quantize_rows`; `down` is used in its own 16-bit dtype on the tensor cores."""
    rows = rows.contiguous()
    count, dim = rows.shape
    norm = shift is not None and scale is not None
    rank = down.shape[0] if down is not None else 0
    codes = torch.empty((count, dim), dtype=torch.int8, device=rows.device)
    row_scale = torch.empty((count,), dtype=torch.float32, device=rows.device)
    projected = torch.empty(
        (count, rank) if down is not None else (0, 0), dtype=torch.float32, device=rows.device
    )
    if not count:
        return codes, row_scale, projected
    rows_each = 16  # the smallest side of a tensor-core product
    filler = rows
    _quantize_rows_kernel[(triton.cdiv(count, rows_each),)](
        rows,
        filler if smooth is None else smooth.contiguous(),
        filler if down is None else down.contiguous(),
        shift.contiguous() if norm else filler,
        scale.contiguous() if norm else filler,
        codes, row_scale, projected, count, dim, rank,
        count // shift.shape[0] if norm else count, eps,
        ROWS=rows_each, CHUNK=min(256, triton.next_power_of_2(max(dim, 16))),
        RANK=max(16, triton.next_power_of_2(max(rank, 1))),
        NORM=norm, SMOOTH=smooth is not None, DOWN=down is not None, WIDE=not rows.is_cuda,
    )  # fmt: skip
    return codes, row_scale, projected
