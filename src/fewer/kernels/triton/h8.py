"""Expansion of 4-bit codes into an int8 scratch buffer, and the int8 product with its long epilogue."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.hopper import fits_hopper, hopper_product
from fewer.kernels.triton.norms import launch_gated_add
from fewer.kernels.triton.rows import as_code

ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2}


@triton.jit
def _expand_h8_kernel(packed, group_scale, out, total, groups, BLOCK: tl.constexpr):
    # One row of the block is one group: 32 bytes in, 64 weights out.
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, 32)
    inside = (group < total)[:, None]
    byte = tl.load(packed + group[:, None] * 32 + lane[None, :], mask=inside, other=0).to(tl.int32)
    size = tl.load(group_scale + group, mask=group < total, other=0).to(tl.int32)[:, None]
    where = out + group[:, None] * 64 + lane[None, :]
    tl.store(where, (((byte & 15) - 8) * size).to(tl.int8), mask=inside)
    tl.store(where + 32, (((byte >> 4) - 8) * size).to(tl.int8), mask=inside)


@triton.jit
def _decoded(codes, size, smooth, down, up_rows, inverse, where, columns, alive, dim, rank,
             SMOOTH: tl.constexpr, RANK: tl.constexpr, LOW_RANK: tl.constexpr, WIDE: tl.constexpr,
             ROUND: tl.constexpr):  # fmt: skip
    """Stores half a group of some rows: codes, scales, smoothing, the low-rank pair's product, rounding."""
    # As the low bits of 2**23 a code needs no conversion; 8 is what was added to it.
    w = ((codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0) * size
    if SMOOTH:
        w = w / tl.load(smooth + columns).to(tl.float32)[None, :]
    if LOW_RANK:
        r = tl.arange(0, RANK)
        low = tl.load(down + r[:, None] * dim + columns[None, :], mask=(r < rank)[:, None], other=0.0)
        if WIDE:
            low = low.to(tl.float32)
        w = tl.dot(up_rows, low, acc=w, input_precision="ieee")
    w = as_code(w * inverse) if ROUND else w.to(where.dtype.element_ty)
    tl.store(where + columns[None, :], w, mask=alive[:, None])


@triton.jit
def _decode_h8_kernel(
    packed, group_scale, channel_scale, smooth, down, up, out, round_to, rows, dim, rank,
    ROWS: tl.constexpr, EACH: tl.constexpr, STAGES: tl.constexpr, RANK: tl.constexpr, SMOOTH: tl.constexpr,
    LOW_RANK: tl.constexpr, WIDE: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    # Some rows of `EACH` groups: what is the rows' own is read once for all of them.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    groups, first = dim // 64, tl.program_id(1) * EACH
    lane = tl.arange(0, 32)
    alive = row < rows
    step = tl.load(channel_scale + row, mask=alive, other=0.0).to(tl.float32)
    up_rows = step[:, None]
    if LOW_RANK:
        r = tl.arange(0, RANK)
        up_rows = tl.load(
            up + row[:, None] * rank + r[None, :], mask=alive[:, None] & (r < rank)[None, :], other=0.0
        )
        if WIDE:  # the interpreter cannot multiply bf16
            up_rows = up_rows.to(tl.float32)
    inverse = step[:, None]
    if ROUND:
        unit = tl.load(round_to + row, mask=alive, other=1.0).to(tl.float32)
        inverse = (1.0 / tl.where(unit > 0.0, unit, 1.0))[:, None]
    here, where = packed + row[:, None] * (dim // 2), out + row[:, None] * dim
    for group in tl.range(first, tl.minimum(first + EACH, groups), num_stages=STAGES):  # pyright: ignore
        byte = tl.load(here + group * 32 + lane[None, :], mask=alive[:, None], other=8)
        scale = tl.load(group_scale + row * groups + group, mask=alive, other=0).to(tl.float32)
        size, columns = (scale * step)[:, None], group * 64 + lane
        codes = byte.to(tl.int32) & 15
        _decoded(
            codes, size, smooth, down, up_rows, inverse, where, columns, alive, dim, rank,
            SMOOTH, RANK, LOW_RANK, WIDE, ROUND,
        )  # fmt: skip
        codes = byte.to(tl.int32) >> 4
        _decoded(
            codes, size, smooth, down, up_rows, inverse, where, columns + 32, alive, dim, rank,
            SMOOTH, RANK, LOW_RANK, WIDE, ROUND,
        )  # fmt: skip


@triton.jit
def _int8_linear_kernel(
    codes, row_scale, weight, column_scale, bias, projected, up, gate, residual, out,
    rows, outputs, dim, rank, tokens,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, GROUPED: tl.constexpr, RANK: tl.constexpr,
    BIAS: tl.constexpr, LOW_RANK: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr,
    RESIDUAL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # Programs that share weights run together, so that the scratch buffer is read from the L2.
    program = tl.program_id(0)
    row_blocks, column_blocks = tl.cdiv(rows, ROWS), tl.cdiv(outputs, COLUMNS)
    in_group = GROUPED * column_blocks
    first = (program // in_group) * GROUPED
    height = tl.minimum(row_blocks - first, GROUPED)
    row_block = first + (program % in_group) % height
    column_block = (program % in_group) // height

    row = (row_block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (column_block * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    k = tl.arange(0, CHUNK)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    for start in range(0, dim, CHUNK):
        depth = start + k
        a = tl.load(
            codes + row[:, None] * dim + depth[None, :],
            mask=(row < rows)[:, None] & (depth < dim)[None, :], other=0,
        )  # fmt: skip
        b = tl.load(
            weight + column[None, :] * dim + depth[:, None],
            mask=(column < outputs)[None, :] & (depth < dim)[:, None], other=0,
        )  # fmt: skip
        total = tl.dot(a, b, acc=total, out_dtype=tl.int32)

    size = tl.load(row_scale + row, mask=row < rows, other=0.0)
    step = tl.load(column_scale + column, mask=column < outputs, other=0.0).to(tl.float32)
    y = total.to(tl.float32) * size[:, None] * step[None, :]
    if LOW_RANK:
        r = tl.arange(0, RANK)
        high = tl.load(
            up + column[None, :] * rank + r[:, None],
            mask=(column < outputs)[None, :] & (r < rank)[:, None], other=0.0,
        )  # fmt: skip
        low = tl.load(
            projected + row[:, None] * rank + r[None, :],
            mask=(row < rows)[:, None] & (r < rank)[None, :], other=0.0,
        )  # fmt: skip
        if WIDE:  # the interpreter cannot multiply bf16
            high = high.to(tl.float32)
        y += tl.dot(low.to(high.dtype), high, input_precision="ieee")
    if BIAS:
        y += tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == 1:
        y = y / (1.0 + tl.exp(-y))
    elif ACTIVATION == 2:
        inner = 0.7978845608028654 * (y + 0.044715 * y * y * y)
        y = y / (1.0 + tl.exp(-2.0 * inner))  # y · (1 + tanh(inner)) / 2
    inside = (row < rows)[:, None] & (column < outputs)[None, :]
    if GATE:
        batch = row // tokens
        y *= tl.load(gate + batch[:, None] * outputs + column[None, :], mask=inside, other=0.0).to(tl.float32)
    where = row[:, None] * outputs + column[None, :]
    if RESIDUAL:
        y += tl.load(residual + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + where, y.to(out.dtype.element_ty), mask=inside)


def launch_expand_h8(packed: Tensor, group_scale: Tensor, out: Tensor, block: int = 64) -> None:
    """Writes q·t into `out`; all three contiguous."""
    total = group_scale.numel()
    if total:
        grid = (triton.cdiv(total, block),)
        _expand_h8_kernel[grid](packed, group_scale, out, total, group_scale.shape[1], BLOCK=block)


def launch_decode_h8(
    packed: Tensor,
    group_scale: Tensor,
    channel_scale: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    out: Tensor,
    step: Tensor | None = None,
    block: int = 64,
    each: int | None = None,
    stages: int = 3,
    warps: int = 4,
) -> None:
    """As `reference_decode_h8`; all tensors contiguous. A program has `block` rows of `each` groups."""
    rows, half = packed.shape
    if not rows:
        return
    low_rank = down is not None and up is not None
    rank = down.shape[0] if down is not None else 0
    each = each or (1 if step is None else 4)
    _decode_h8_kernel[(triton.cdiv(rows, block), triton.cdiv(half // 32, each))](
        packed, group_scale, channel_scale, channel_scale if smooth is None else smooth,
        down if low_rank else channel_scale, up if low_rank else channel_scale, out,
        channel_scale if step is None else step, rows, half * 2, rank,
        ROWS=block, EACH=each, STAGES=stages, RANK=max(16, triton.next_power_of_2(rank)),
        SMOOTH=smooth is not None, LOW_RANK=low_rank, WIDE=not packed.is_cuda, ROUND=step is not None,
        num_warps=warps,
    )  # fmt: skip


def launch_int8_linear(
    codes: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor,
    bias: Tensor | None,
    projected: Tensor | None,
    up: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
    tile: tuple[int, int, int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference_int8_linear`. `tile` forces the portable kernel and gives its (rows, outputs, depth).

    `out` is contiguous, in `dtype`, and takes the result.
    """
    rows, dim = codes.shape
    outputs = weight.shape[0]
    if tile is None and dtype == torch.bfloat16 and fits_hopper(codes, weight, projected, up):
        scales = (row_scale.contiguous(), column_scale.contiguous())
        alone = gate is None and residual is None
        y = hopper_product(codes, weight, scales, bias, projected, up, activation, out if alone else None)
        if alone:
            return y
        y = launch_gated_add(torch.zeros_like(y) if residual is None else residual, y, gate)
        return y if out is None else out.copy_(y)
    if out is None:
        out = torch.empty((rows, outputs), dtype=dtype, device=codes.device)
    if not rows or not outputs:
        return out
    # 128×256 keeps the tensor cores fed on Hopper once there are enough tiles for its 132 processors.
    small = triton.cdiv(rows, 128) * triton.cdiv(outputs, 256) < 132
    block_rows, block_columns, depth = tile or ((128, 128, 128) if small else (128, 256, 128))
    low_rank = projected is not None and up is not None
    rank = up.shape[1] if up is not None else 0
    filler = row_scale
    _int8_linear_kernel[(triton.cdiv(rows, block_rows) * triton.cdiv(outputs, block_columns),)](
        codes.contiguous(), row_scale.contiguous(), weight.contiguous(), column_scale.contiguous(),
        filler if bias is None else bias.contiguous(),
        projected.contiguous() if projected is not None else filler,
        up.contiguous() if up is not None else filler,
        filler if gate is None else gate.contiguous(),
        filler if residual is None else residual.contiguous(),
        out, rows, outputs, dim, rank, rows // gate.shape[0] if gate is not None else rows,
        ROWS=block_rows, COLUMNS=block_columns, CHUNK=depth, GROUPED=8,
        RANK=max(16, triton.next_power_of_2(max(rank, 1))), BIAS=bias is not None, LOW_RANK=low_rank,
        ACTIVATION=ACTIVATIONS[activation], GATE=gate is not None, RESIDUAL=residual is not None,
        WIDE=not codes.is_cuda,
        num_warps=8, num_stages=4 if small else 3,
    )  # fmt: skip
    return out
