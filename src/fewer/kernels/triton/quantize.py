"""K1 in Triton: rows that fit are projected by the kernel that quantizes them; longer ones are two kernels.

"resident": a program owns 16 short rows in registers and multiplies them by the projection's factor.
"rows": a program owns one, and the projection is a product of its own that reads the rows once more.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.chain import chained, follow
from fewer.kernels.triton.rows import as_code, normed, pieces, summed, vector

# Up to this width 16 rows and the factor of the projection fit into one processor at once.
LONGEST_RESIDENT = 1536
MOST_RESIDENT_ROWS = 8192
# Up to this width a program keeps its whole row, where nothing has to be summed or normalised first.
LONGEST_IN_REGISTERS = 4096
Way = Literal["rows", "resident"]


@triton.jit
def _vector(base, first, batch, stride, columns, known, ALIGNED: tl.constexpr):
    """A vector for every row: of the one batch that all rows belong to, or of each row's own."""
    if ALIGNED:
        v = tl.load(base + first * stride + columns, mask=known, other=0.0)[None, :]
    else:
        where = batch[:, None] * stride + columns[None, :]
        v = tl.load(base + where, mask=(batch >= 0)[:, None] & known[None, :], other=0.0)
    return v.to(tl.float32)


@triton.jit
def _rows(x, update, gate, total, row, first, batch, alive, columns, dim, gate_b,
          UPDATE: tl.constexpr, GATE: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """Some columns of the rows in fp32, after the sum, which is stored."""
    known = columns < dim
    inside = alive[:, None] & known[None, :]
    where = row[:, None] * dim + columns[None, :]
    v = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
    if UPDATE:
        u = tl.load(update + where, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            u *= _vector(gate, first, batch, gate_b, columns, known, ALIGNED)
        rounded = (v + u).to(total.dtype.element_ty)
        tl.store(total + where, rounded, mask=inside)
        v = rounded.to(tl.float32)
    return v


@triton.jit
def _modulate(v, mean, spread, shift, scale, first, batch, alive, columns, dim, shift_b, scale_b,
              NORM: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    if NORM:
        known = columns < dim
        a = _vector(scale, first, batch, scale_b, columns, known, ALIGNED)
        b = _vector(shift, first, batch, shift_b, columns, known, ALIGNED)
        v = (v - mean[:, None]) * spread[:, None] * (1.0 + a) + b
        v = tl.where(alive[:, None] & known[None, :], v, 0.0)
    return v


@triton.jit
def _project(total, v, down, columns, dim, rank, RANK: tl.constexpr, WIDE: tl.constexpr):
    ranks = tl.arange(0, RANK)
    mask = (ranks < rank)[None, :] & (columns < dim)[:, None]
    factor = tl.load(down + ranks[None, :] * dim + columns[:, None], mask=mask, other=0.0)
    if WIDE:  # the interpreter cannot multiply bf16
        factor = factor.to(tl.float32)
    return tl.dot(v.to(factor.dtype), factor, acc=total, input_precision="ieee")


@triton.jit
def _smoothed(v, inverse, columns, dim, SMOOTH: tl.constexpr):
    if SMOOTH:
        v = v * tl.load(inverse + columns, mask=columns < dim, other=1.0).to(tl.float32)[None, :]
    return v


@triton.jit
def _store_codes(codes, v, size, row, alive, columns, dim):
    # A division a row; one a number would cost more than reading and writing it.
    inverse = 1.0 / tl.where(size > 0.0, size, 1.0)
    inside = alive[:, None] & (columns < dim)[None, :]
    tl.store(codes + row[:, None] * dim + columns[None, :], as_code(v * inverse[:, None]), mask=inside)


@triton.jit
def _resident_kernel(
    x, inverse, down, shift, scale, update, gate, codes, row_scale, projected, total,
    rows, dim, rank, tokens, eps, shift_b, scale_b, gate_b,
    ROWS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, RANK: tl.constexpr, NORM: tl.constexpr,
    SMOOTH: tl.constexpr, UPDATE: tl.constexpr, GATE: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    follow(CHAIN)
    # Rows of a width between powers of two are two pieces, so that few registers hold nothing.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive = row < rows
    first, batch = (tl.program_id(0) * ROWS) // tokens, tl.minimum(row, rows - 1) // tokens
    a, b = tl.arange(0, FIRST), FIRST + tl.arange(0, SECOND)
    v = _rows(x, update, gate, total, row, first, batch, alive, a, dim, gate_b, UPDATE, GATE, ALIGNED)
    w = _rows(x, update, gate, total, row, first, batch, alive, b, dim, gate_b, UPDATE, GATE, ALIGNED)
    mean = tl.zeros((ROWS,), dtype=tl.float32)
    spread = mean
    if NORM:
        mean = (tl.sum(v, axis=1) + tl.sum(w, axis=1)) / dim
        left = tl.where((a < dim)[None, :], v - mean[:, None], 0.0)
        right = tl.where((b < dim)[None, :], w - mean[:, None], 0.0)
        spread = 1.0 / tl.sqrt((tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)) / dim + eps)
    v = _modulate(v, mean, spread, shift, scale, first, batch, alive, a, dim, shift_b, scale_b, NORM, ALIGNED)
    w = _modulate(w, mean, spread, shift, scale, first, batch, alive, b, dim, shift_b, scale_b, NORM, ALIGNED)
    low = tl.zeros((ROWS, RANK), dtype=tl.float32)
    low = _project(low, v, down, a, dim, rank, RANK, WIDE)
    low = _project(low, w, down, b, dim, rank, RANK, WIDE)
    ranks = tl.arange(0, RANK)
    where = projected + row[:, None] * rank + ranks[None, :]
    tl.store(where, low.to(projected.dtype.element_ty), mask=alive[:, None] & (ranks < rank)[None, :])
    v, w = _smoothed(v, inverse, a, dim, SMOOTH), _smoothed(w, inverse, b, dim, SMOOTH)
    size = tl.maximum(tl.max(tl.abs(v), axis=1), tl.max(tl.abs(w), axis=1)) / 127.0
    tl.store(row_scale + row, size, mask=alive)
    _store_codes(codes, v, size, row, alive, a, dim)
    _store_codes(codes, w, size, row, alive, b, dim)


@triton.jit
def _row_kernel(
    x, inverse, shift, scale, update, gate, codes, row_scale, total, out,
    dim, tokens, eps, shift_b, scale_b, gate_b,
    FIRST: tl.constexpr, SECOND: tl.constexpr, NORM: tl.constexpr, SMOOTH: tl.constexpr,
    UPDATE: tl.constexpr, GATE: tl.constexpr, KEEP: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    follow(CHAIN)
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    x, update, total, gate = x + row * dim, update + row * dim, total + row * dim, gate + batch * gate_b
    a, b = tl.arange(0, FIRST), FIRST + tl.arange(0, SECOND)
    v = summed(x, update, gate, total, a, dim, UPDATE, GATE)
    w = summed(x, update, gate, total, b, dim, UPDATE, GATE)
    if NORM:
        # Asked for no earlier: registers for them would leave room for fewer rows at a time, which is slower.
        out, scale, shift = out + row * dim, scale + batch * scale_b, shift + batch * shift_b
        v, w = normed(v, w, a, b, dim, eps)
        v = v * (1.0 + vector(scale, a, dim, 0.0)) + vector(shift, a, dim, 0.0)
        w = w * (1.0 + vector(scale, b, dim, 0.0)) + vector(shift, b, dim, 0.0)
        if KEEP:
            tl.store(out + a, v.to(out.dtype.element_ty), mask=a < dim)
            tl.store(out + b, w.to(out.dtype.element_ty), mask=b < dim)
    if SMOOTH:
        v, w = v * vector(inverse, a, dim, 1.0), w * vector(inverse, b, dim, 1.0)
    size = tl.maximum(tl.max(tl.abs(v), axis=0), tl.max(tl.abs(w), axis=0)) / 127.0  # pyright: ignore
    tl.store(row_scale + row, size)
    unit = 1.0 / tl.where(size > 0.0, size, 1.0)
    codes += row * dim
    tl.store(codes + a, as_code(v * unit), mask=a < dim)
    tl.store(codes + b, as_code(w * unit), mask=b < dim)


@triton.jit
def _smoothed_piece(v, inverse, columns, dim, SMOOTH: tl.constexpr):
    v = v.to(tl.float32)
    return v * vector(inverse, columns, dim, 1.0) if SMOOTH else v


@triton.jit
def _long_row_kernel(
    x, inverse, codes, row_scale, dim,
    BLOCK: tl.constexpr, PIECES: tl.constexpr, SMOOTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    # A row is read once and stays in registers as it came, 16 bits a number: in fp32 it would leave a
    # processor with one program, whose waiting none would hide.
    follow(CHAIN)
    row = tl.program_id(0).to(tl.int64)
    x, codes, lane = x + row * dim, codes + row * dim, tl.arange(0, BLOCK)
    b_, c_, d_ = BLOCK + lane, 2 * BLOCK + lane, 3 * BLOCK + lane
    a = tl.load(x + lane, mask=lane < dim, other=0.0)
    b = tl.load(x + b_, mask=b_ < dim, other=0.0)
    c = tl.load(x + c_, mask=c_ < dim, other=0.0) if PIECES > 2 else b
    d = tl.load(x + d_, mask=d_ < dim, other=0.0) if PIECES > 3 else b
    largest = tl.abs(_smoothed_piece(a, inverse, lane, dim, SMOOTH))
    largest = tl.maximum(largest, tl.abs(_smoothed_piece(b, inverse, b_, dim, SMOOTH)))
    if PIECES > 2:
        largest = tl.maximum(largest, tl.abs(_smoothed_piece(c, inverse, c_, dim, SMOOTH)))
    if PIECES > 3:
        largest = tl.maximum(largest, tl.abs(_smoothed_piece(d, inverse, d_, dim, SMOOTH)))
    size = tl.max(largest, axis=0) / 127.0  # pyright: ignore
    tl.store(row_scale + row, size)
    unit = 1.0 / tl.where(size > 0.0, size, 1.0)
    tl.store(codes + lane, as_code(_smoothed_piece(a, inverse, lane, dim, SMOOTH) * unit), mask=lane < dim)
    tl.store(codes + b_, as_code(_smoothed_piece(b, inverse, b_, dim, SMOOTH) * unit), mask=b_ < dim)
    if PIECES > 2:
        tl.store(codes + c_, as_code(_smoothed_piece(c, inverse, c_, dim, SMOOTH) * unit), mask=c_ < dim)
    if PIECES > 3:
        tl.store(codes + d_, as_code(_smoothed_piece(d, inverse, d_, dim, SMOOTH) * unit), mask=d_ < dim)


@triton.jit
def _longest_row_kernel(
    x, inverse, codes, row_scale, dim, BLOCK: tl.constexpr, SMOOTH: tl.constexpr, CHAIN: tl.constexpr
):  # fmt: skip
    # Read twice, the second time from a cache.
    follow(CHAIN)
    row = tl.program_id(0).to(tl.int64)
    x += row * dim
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, dim, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        v = _smoothed_piece(vector(x, columns, dim, 0.0), inverse, columns, dim, SMOOTH)
        largest = tl.maximum(largest, tl.abs(v))
    size = tl.max(largest, axis=0) / 127.0  # pyright: ignore
    tl.store(row_scale + row, size)
    unit = 1.0 / tl.where(size > 0.0, size, 1.0)
    for start in range(0, dim, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        v = _smoothed_piece(vector(x, columns, dim, 0.0), inverse, columns, dim, SMOOTH)
        tl.store(codes + row * dim + columns, as_code(v * unit), mask=columns < dim)


def launch_quantize_rows(
    rows: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    inverse: Tensor | None = None,
    way: Way | None = None,
    warps: int = 8,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference_quantize_rows`; `down` is used in its own 16-bit dtype on the tensor cores.

    `way` is how rows with a projection are read; None lets their width decide.
    """
    rows = rows.contiguous()
    count, dim = rows.shape
    norm = shift is not None and scale is not None
    codes = torch.empty((count, dim), dtype=torch.int8, device=rows.device)
    row_scale = torch.empty((count,), dtype=torch.float32, device=rows.device)
    projected = rows.new_empty((0, 0), dtype=torch.float32)
    total = rows.new_empty((0, 0) if update is None else rows.shape)
    if down is not None:
        projected = torch.empty((count, down.shape[0]), dtype=down.dtype, device=rows.device)
    if not count:
        return codes, row_scale, projected, total
    tokens = count // max(vector.shape[0] for vector in (shift, gate, rows[:1]) if vector is not None)
    # What is absent is never read.
    vectors = [rows[:1] if vector is None else _last_contiguous(vector) for vector in (shift, scale, gate)]
    strides = [vector.stride(0) for vector in vectors]
    # Multiplied by: a division for every number would take as long as reading it.
    factor = rows if smooth is None else (smooth.float().reciprocal() if inverse is None else inverse)
    other = rows if update is None else update.contiguous()
    flags = {
        "NORM": norm,
        "SMOOTH": smooth is not None,
        "UPDATE": update is not None,
        "GATE": gate is not None,
    }
    way = way or _way(rows, norm)
    read = (rows, factor, vectors[0], vectors[1], other, vectors[2], codes, row_scale)
    last = (tokens, eps, *strides)
    if down is None or way == "rows":
        kept = _launch_rows(read, total, last, flags, down is not None)
        if down is not None:
            projected = torch.nn.functional.linear(kept.to(down.dtype), down)
        return codes, row_scale, projected, total
    rank = down.shape[0]
    operands = (*read[:2], down.contiguous(), *read[2:], projected, total, count, dim, rank, *last)
    ranks = max(16, triton.next_power_of_2(rank))
    each = 16  # the smallest side of a tensor-core product
    first = triton.next_power_of_2(dim) // 2
    _resident_kernel[(triton.cdiv(count, each),)](
        *operands,
        ROWS=each, FIRST=first, SECOND=max(16, triton.next_power_of_2(dim - first)),
        RANK=ranks, ALIGNED=tokens % each == 0, WIDE=not rows.is_cuda,
        num_warps=warps, **flags, **chained(rows.device),
    )  # fmt: skip
    return codes, row_scale, projected, total


def _way(rows: Tensor, norm: bool) -> Way:
    """Measured on one H100: the projection of few normed rows costs least inside, of many outside."""
    count, dim = rows.shape
    if norm and 256 < dim <= LONGEST_RESIDENT and count <= MOST_RESIDENT_ROWS:
        return "resident"
    return "rows"


def _launch_rows(
    read: tuple[Tensor, ...],
    total: Tensor,
    last: tuple[object, ...],
    flags: dict[str, bool],
    projects: bool,
) -> Tensor:
    """Codes and scales, a row at a time. Returns what a projection would read."""
    rows, factor, *_, codes, row_scale = read
    count, dim = rows.shape
    keep = flags["NORM"] and projects
    kept = torch.empty_like(rows) if keep else rows
    if dim > LONGEST_IN_REGISTERS and not flags["NORM"] and not flags["UPDATE"]:
        count_of_pieces = triton.cdiv(dim, LONGEST_IN_REGISTERS)
        # Measured on one H100, 4,608 rows of 12,288: 58 us against 67, with smoothing 77 against 84.
        once = count_of_pieces <= 4 and rows.element_size() == 2
        kernel, extra = (_long_row_kernel, {"PIECES": count_of_pieces}) if once else (_longest_row_kernel, {})
        kernel[(count,)](
            rows, factor, codes, row_scale, dim, BLOCK=LONGEST_IN_REGISTERS, SMOOTH=flags["SMOOTH"],
            num_warps=8, **extra, **chained(rows.device),
        )  # fmt: skip
    else:
        _row_kernel[(count,)](
            *read, total, kept, dim, *last,
            KEEP=keep, **pieces(dim), **flags, **chained(rows.device),
        )  # fmt: skip
    return kept if keep or not flags["UPDATE"] else total


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
