# type: ignore
# Gluon functions look like Python and are not: a type checker cannot read them.
"""The matrix product for Hopper: one warp fetches tiles ahead, two groups of warps multiply and finish.

A program goes through tiles of 128 rows. Its copying warp keeps a ring of shared-memory stages filled, also
while the others finish a tile; each multiplying group owns 64 of the rows and shares the weights with the
other. The low-rank pair of a tile comes through the same ring, as one more step of the sum over columns.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

ROWS = 128
GROUPED = 8
# Triton 3.6 knows these by other names.
RENAMED = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))
fetch = getattr(tma, "async_load", tma.async_copy_global_to_shared)
send = getattr(tma, "async_store", tma.async_copy_shared_to_global)


@gluon.jit
def tile_of(desc, buffer, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """The shared memory as a tile of bf16 that `desc` copies."""
    if RENAMED:
        return buffer.reinterpret(gl.bfloat16, [ROWS, COLUMNS], desc.layout)
    else:  # noqa: RET505
        return buffer._reinterpret(gl.bfloat16, [ROWS, COLUMNS], desc.layout)


@gluon.jit
def _place(tile, row_blocks, column_blocks, GROUPED: gl.constexpr):
    """Tiles that share weights run at the same time, so that these are read from the L2."""
    in_group = GROUPED * column_blocks
    first = (tile // in_group) * GROUPED
    height = gl.minimum(row_blocks - first, GROUPED)
    return first + (tile % in_group) % height, (tile % in_group) // height


@gluon.jit
def _fetch(
    rows_desc, weight_desc, low_desc, up_desc, upper, lower, weights, full, empty,
    row_blocks, column_blocks, steps,
    HALF: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr,
    GROUPED: gl.constexpr, RANK: gl.constexpr,
):  # fmt: skip
    index = 0
    for tile in range(gl.program_id(0), row_blocks * column_blocks, gl.num_programs(0)):
        row_block, column_block = _place(tile, row_blocks, column_blocks, GROUPED)
        row = row_block * 2 * HALF
        for step in range(steps):
            stage = index % STAGES
            mbarrier.wait(empty.index(stage), ((index // STAGES) & 1) ^ 1)
            bar = full.index(stage)
            mbarrier.expect(bar, rows_desc.block_type.nbytes * 2 + weight_desc.block_type.nbytes)
            depth = step * CHUNK
            fetch(rows_desc, [row, depth], bar, upper.index(stage))
            fetch(rows_desc, [row + HALF, depth], bar, lower.index(stage))
            column = column_block * COLUMNS
            fetch(weight_desc, [column, depth], bar, weights.index(stage))
            index += 1
        if RANK > 0:
            stage = index % STAGES
            mbarrier.wait(empty.index(stage), ((index // STAGES) & 1) ^ 1)
            bar = full.index(stage)
            mbarrier.expect(bar, low_desc.block_type.nbytes * 2 + up_desc.block_type.nbytes)
            low = tile_of(low_desc, upper.index(stage), HALF, RANK)
            fetch(low_desc, [row, 0], bar, low)
            low = tile_of(low_desc, lower.index(stage), HALF, RANK)
            fetch(low_desc, [row + HALF, 0], bar, low)
            up = tile_of(up_desc, weights.index(stage), COLUMNS, RANK)
            fetch(up_desc, [column_block * COLUMNS, 0], bar, up)
            index += 1


@gluon.jit
def _store(out_desc, row, column, result, buffer):
    """Through shared memory; the copy to device memory goes on while the next tile is multiplied."""
    tma.store_wait(0)
    buffer.store(result)
    fence_async_shared()
    send(out_desc, [row, column], buffer)


@gluon.jit
def _multiply(
    out_desc, low_desc, up_desc, row_scale, column_scale, bias, half, weights, buffer, full, empty,
    row_blocks, column_blocks, steps, rows, outputs,
    WHICH: gl.constexpr, HALF: gl.constexpr, COLUMNS: gl.constexpr, STAGES: gl.constexpr,
    GROUPED: gl.constexpr, RANK: gl.constexpr, INT8: gl.constexpr, BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr,
):  # fmt: skip
    # int8 instructions are at most 224 wide.
    WIDTH: gl.constexpr = 128 if INT8 else COLUMNS
    F: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, WIDTH, 16]
    )
    if INT8:
        SUM: gl.constexpr = gl.NVMMADistributedLayout(
            version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, WIDTH, 32]
        )
        KIND: gl.constexpr = gl.int32
    else:
        SUM: gl.constexpr = F
        KIND: gl.constexpr = gl.float32
    index = 0
    for tile in range(gl.program_id(0), row_blocks * column_blocks, gl.num_programs(0)):
        row_block, column_block = _place(tile, row_blocks, column_blocks, GROUPED)
        total = gl.zeros((HALF, COLUMNS), KIND, SUM)
        for step in range(steps):
            stage = index % STAGES
            mbarrier.wait(full.index(stage), (index // STAGES) & 1)
            total = warpgroup_mma(
                half.index(stage), weights.index(stage).permute((1, 0)), total, is_async=True
            )
            # The product before this one is done, so its stage may be filled again.
            total = warpgroup_mma_wait(num_outstanding=1, deps=[total])
            mbarrier.arrive(empty.index((index + STAGES - 1) % STAGES), count=1, pred=step > 0)
            index += 1
        total = warpgroup_mma_wait(num_outstanding=0, deps=[total])
        mbarrier.arrive(empty.index((index + STAGES - 1) % STAGES), count=1)

        first = row_block * 2 * HALF + WHICH * HALF
        row = first + gl.arange(0, HALF, layout=gl.SliceLayout(1, F))
        column = column_block * COLUMNS + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, F))
        if INT8:
            y = gl.convert_layout(total.to(gl.float32), F)
            y = y * gl.load(row_scale + row, mask=row < rows, other=0.0)[:, None]
            y = y * gl.load(column_scale + column, mask=column < outputs, other=0.0).to(gl.float32)[None, :]
        else:
            y = total
        if RANK > 0:
            stage = index % STAGES
            mbarrier.wait(full.index(stage), (index // STAGES) & 1)
            low = tile_of(low_desc, half.index(stage), HALF, RANK)
            up = tile_of(up_desc, weights.index(stage), COLUMNS, RANK)
            y = warpgroup_mma(low, up.permute((1, 0)), y, is_async=True)
            y = warpgroup_mma_wait(num_outstanding=0, deps=[y])
            mbarrier.arrive(empty.index(stage), count=1)
            index += 1
        if BIAS:
            y += gl.load(bias + column, mask=column < outputs, other=0.0).to(gl.float32)[None, :]
        if ACTIVATION == 1:
            y = y / (1.0 + gl.exp(-y))
        elif ACTIVATION == 2:
            inner = 0.7978845608028654 * (y + 0.044715 * y * y * y)
            y = y / (1.0 + gl.exp(-2.0 * inner))  # y · (1 + tanh(inner)) / 2
        result = y.to(gl.bfloat16)
        if COLUMNS == 256:
            left, right = result.reshape((HALF, 2, 128)).permute((0, 2, 1)).split()
            _store(out_desc, first, column_block * COLUMNS, left, buffer)
            _store(out_desc, first, column_block * COLUMNS + 128, right, buffer)
        else:
            _store(out_desc, first, column_block * COLUMNS, result, buffer)
    tma.store_wait(0)


@gluon.jit
def _product_kernel(
    rows_desc, weight_desc, low_desc, up_desc, out_desc, row_scale, column_scale, bias, rows, outputs, dim,
    HALF: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr,
    GROUPED: gl.constexpr, RANK: gl.constexpr, INT8: gl.constexpr, BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr,
):  # fmt: skip
    upper = gl.allocate_shared_memory(rows_desc.dtype, [STAGES, HALF, CHUNK], rows_desc.layout)
    lower = gl.allocate_shared_memory(rows_desc.dtype, [STAGES, HALF, CHUNK], rows_desc.layout)
    weights = gl.allocate_shared_memory(weight_desc.dtype, [STAGES, COLUMNS, CHUNK], weight_desc.layout)
    first_out = gl.allocate_shared_memory(gl.bfloat16, [HALF, 128], out_desc.layout)
    second_out = gl.allocate_shared_memory(gl.bfloat16, [HALF, 128], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    row_blocks, column_blocks = gl.cdiv(rows, 2 * HALF), gl.cdiv(outputs, COLUMNS)
    steps = gl.cdiv(dim, CHUNK)
    gl.warp_specialize(
        [
            (_multiply, (
                out_desc, low_desc, up_desc, row_scale, column_scale, bias,
                upper, weights, first_out, full, empty, row_blocks, column_blocks, steps, rows, outputs,
                0, HALF, COLUMNS, STAGES, GROUPED, RANK, INT8, BIAS, ACTIVATION,
            )),
            (_multiply, (
                out_desc, low_desc, up_desc, row_scale, column_scale, bias,
                lower, weights, second_out, full, empty, row_blocks, column_blocks, steps, rows, outputs,
                1, HALF, COLUMNS, STAGES, GROUPED, RANK, INT8, BIAS, ACTIVATION,
            )),
            (_fetch, (
                rows_desc, weight_desc, low_desc, up_desc, upper, lower, weights, full, empty,
                row_blocks, column_blocks, steps, HALF, COLUMNS, CHUNK, STAGES, GROUPED, RANK,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


def launch_product(
    rows: Tensor,
    weight: Tensor,
    scales: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    low: Tensor | None,
    up: Tensor | None,
    activation: int,
    columns: int,
) -> Tensor:
    """(rows, dim) int8 or bf16, (outputs, dim) of the same type -> (rows, outputs) in bf16."""
    (count, dim), outputs = rows.shape, weight.shape[0]
    out = torch.empty((count, outputs), dtype=torch.bfloat16, device=rows.device)
    int8 = rows.dtype == torch.int8
    chunk = 128 // rows.element_size()
    rank = 0 if up is None else up.shape[1]
    out_desc = _describe(out, ROWS // 2, 128)
    low_desc = out_desc if low is None else _describe(low, ROWS // 2, rank)
    up_desc = out_desc if up is None else _describe(up, columns, rank)
    tiles = triton.cdiv(count, ROWS) * triton.cdiv(outputs, columns)
    filler = weight
    row_scale, column_scale = scales or (filler, filler)
    processors = torch.cuda.get_device_properties(rows.device).multi_processor_count
    _product_kernel[(min(processors, tiles),)](
        _describe(rows, ROWS // 2, chunk), _describe(weight, columns, chunk), low_desc, up_desc, out_desc,
        row_scale, column_scale, filler if bias is None else bias.contiguous(), count, outputs, dim,
        HALF=ROWS // 2, COLUMNS=columns, CHUNK=chunk, STAGES=4 if columns == 256 else 6, GROUPED=GROUPED,
        RANK=rank, INT8=int8, BIAS=bias is not None, ACTIVATION=activation, num_warps=4,
    )  # fmt: skip
    return out


def _describe(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    kind = gl.int8 if matrix.dtype == torch.int8 else gl.bfloat16
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], kind)
    return TensorDescriptor.from_tensor(matrix, [rows, columns], layout)
