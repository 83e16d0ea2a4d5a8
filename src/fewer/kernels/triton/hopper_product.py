# type: ignore
# Gluon functions look like Python and are not: a type checker cannot read them.
"""The matrix product for Hopper: one warp fetches tiles ahead, two groups of warps multiply in turns.

A program goes through tiles of 128 × 128. Its copying warp keeps a ring of shared-memory stages filled;
while one group of warps finishes a tile (scales, bias, activation, storing), the other multiplies the next:
where the sum over columns is short, finishing takes a fifth of the time, and here it costs nothing. Groups
hand over the turn, since the barriers of the ring only tell even rounds from odd ones. The low-rank pair of a
tile comes through the same ring, as one more step of the sum.
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

from fewer.kernels.triton.chain import chained

ROWS = 128
COLUMNS = 128
STAGES = 6
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
def gate_by_tanh(y, inner):
    """y · (1 + tanh(inner / 2)) / 2: SiLU where inner is y, by one slow instruction instead of two.

    The hardware's tanh is good to 2⁻¹¹, a quarter of what rounding to bf16 loses.
    """
    turn = gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * inner], dtype=gl.float32, is_pure=True, pack=1
    )
    half = 0.5 * y
    return half * turn + half


@gluon.jit
def follow(CHAIN: gl.constexpr):
    """As in `chain`, for kernels in Gluon."""
    if CHAIN:
        gl.inline_asm_elementwise(
            "griddepcontrol.wait; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )


@gluon.jit
def _place(tile, row_blocks, column_blocks, GROUPED: gl.constexpr):
    """Tiles that share weights run at the same time, so that these are read from the L2."""
    in_group = GROUPED * column_blocks
    first = (tile // in_group) * GROUPED
    height = gl.minimum(row_blocks - first, GROUPED)
    return first + (tile % in_group) % height, (tile % in_group) // height


@gluon.jit
def _fetch(
    rows_desc, weight_desc, low_desc, up_desc, rows, weights, full, empty, row_blocks, column_blocks, steps,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr,
    GROUPED: gl.constexpr, RANK: gl.constexpr,
):  # fmt: skip
    index = 0
    for tile in range(gl.program_id(0), row_blocks * column_blocks, gl.num_programs(0)):
        row_block, column_block = _place(tile, row_blocks, column_blocks, GROUPED)
        row, column = row_block * ROWS, column_block * COLUMNS
        for step in range(steps):
            stage = index % STAGES
            mbarrier.wait(empty.index(stage), ((index // STAGES) & 1) ^ 1)
            bar = full.index(stage)
            mbarrier.expect(bar, rows_desc.block_type.nbytes + weight_desc.block_type.nbytes)
            depth = step * CHUNK
            fetch(rows_desc, [row, depth], bar, rows.index(stage))
            fetch(weight_desc, [column, depth], bar, weights.index(stage))
            index += 1
        if RANK > 0:
            stage = index % STAGES
            mbarrier.wait(empty.index(stage), ((index // STAGES) & 1) ^ 1)
            bar = full.index(stage)
            mbarrier.expect(bar, low_desc.block_type.nbytes + up_desc.block_type.nbytes)
            fetch(low_desc, [row, 0], bar, tile_of(low_desc, rows.index(stage), ROWS, RANK))
            fetch(up_desc, [column, 0], bar, tile_of(up_desc, weights.index(stage), COLUMNS, RANK))
            index += 1


@gluon.jit
def _finish(
    y, out_desc, bias, buffer, row, first, outputs, BIAS: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """The rest of the work on 64 columns of the tile, which are then sent off."""
    column = first + gl.arange(0, 64, layout=gl.SliceLayout(0, y.type.layout))
    if BIAS:
        y += gl.load(bias + column, mask=column < outputs, other=0.0).to(gl.float32)[None, :]
    if ACTIVATION == 1:
        y = gate_by_tanh(y, y)
    elif ACTIVATION == 2:
        y = gate_by_tanh(y, 1.5957691216057308 * (y + 0.044715 * y * y * y))
    tma.store_wait(0)
    buffer.store(y.to(gl.bfloat16))
    fence_async_shared()
    send(out_desc, [row, first], buffer)


@gluon.jit
def _multiply(
    out_desc, low_desc, up_desc, row_scale, column_scale, bias, rows, weights, buffer, full, empty, turns,
    row_blocks, column_blocks, steps, count, outputs,
    WHICH: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr, STAGES: gl.constexpr,
    GROUPED: gl.constexpr, RANK: gl.constexpr, INT8: gl.constexpr, BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr,
):  # fmt: skip
    F: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, COLUMNS, 16]
    )
    if INT8:
        SUM: gl.constexpr = gl.NVMMADistributedLayout(
            version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, COLUMNS, 32]
        )
        KIND: gl.constexpr = gl.int32
    else:
        SUM: gl.constexpr = F
        KIND: gl.constexpr = gl.float32
    more: gl.constexpr = 1 if RANK > 0 else 0
    index = WHICH * (steps + more)
    turn = 0
    start = gl.program_id(0) + WHICH * gl.num_programs(0)
    for tile in range(start, row_blocks * column_blocks, 2 * gl.num_programs(0)):
        row_block, column_block = _place(tile, row_blocks, column_blocks, GROUPED)
        # The first turn is group 0's without waiting.
        mbarrier.wait(turns.index(WHICH), (turn & 1) ^ (1 - WHICH))
        turn += 1
        total = gl.zeros((ROWS, COLUMNS), KIND, SUM)
        for step in range(steps):
            stage = index % STAGES
            mbarrier.wait(full.index(stage), (index // STAGES) & 1)
            total = warpgroup_mma(
                rows.index(stage), weights.index(stage).permute((1, 0)), total, is_async=True
            )
            # The product before this one is done, so its stage may be filled again.
            total = warpgroup_mma_wait(num_outstanding=1, deps=[total])
            mbarrier.arrive(empty.index((index + STAGES - 1) % STAGES), count=1, pred=step > 0)
            index += 1
        if RANK > 0:
            mbarrier.wait(full.index(index % STAGES), (index // STAGES) & 1)
        # All stages of this tile have come, and its products are queued before the other group's.
        mbarrier.arrive(turns.index(1 - WHICH), count=1)
        total = warpgroup_mma_wait(num_outstanding=0, deps=[total])
        mbarrier.arrive(empty.index((index + STAGES - 1) % STAGES), count=1)

        first = row_block * ROWS
        column = column_block * COLUMNS
        if INT8:
            y = gl.convert_layout(total.to(gl.float32), F)
            row = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, F))
            here = column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, F))
            y = y * gl.load(row_scale + row, mask=row < count, other=0.0)[:, None]
            y = y * gl.load(column_scale + here, mask=here < outputs, other=0.0).to(gl.float32)[None, :]
        else:
            y = total
        if RANK > 0:
            stage = index % STAGES
            low = tile_of(low_desc, rows.index(stage), ROWS, RANK)
            up = tile_of(up_desc, weights.index(stage), COLUMNS, RANK)
            y = warpgroup_mma(low, up.permute((1, 0)), y, is_async=True)
            y = warpgroup_mma_wait(num_outstanding=0, deps=[y])
            mbarrier.arrive(empty.index(stage), count=1)
            index += 1
        left, right = y.reshape((ROWS, 2, COLUMNS // 2)).permute((0, 2, 1)).split()
        _finish(left, out_desc, bias, buffer, first, column, outputs, BIAS, ACTIVATION)
        _finish(right, out_desc, bias, buffer, first, column + 64, outputs, BIAS, ACTIVATION)
        index += steps + more  # the other group's
    tma.store_wait(0)


@gluon.jit
def _product_kernel(
    rows_desc, weight_desc, low_desc, up_desc, out_desc, row_scale, column_scale, bias, count, outputs, dim,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr,
    GROUPED: gl.constexpr, RANK: gl.constexpr, INT8: gl.constexpr, BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr, CHAIN: gl.constexpr,
):  # fmt: skip
    rows = gl.allocate_shared_memory(rows_desc.dtype, [STAGES, ROWS, CHUNK], rows_desc.layout)
    weights = gl.allocate_shared_memory(weight_desc.dtype, [STAGES, COLUMNS, CHUNK], weight_desc.layout)
    first_out = gl.allocate_shared_memory(gl.bfloat16, [ROWS, COLUMNS // 2], out_desc.layout)
    second_out = gl.allocate_shared_memory(gl.bfloat16, [ROWS, COLUMNS // 2], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
    fence_async_shared()
    follow(CHAIN)
    row_blocks, column_blocks = gl.cdiv(count, ROWS), gl.cdiv(outputs, COLUMNS)
    steps = gl.cdiv(dim, CHUNK)
    gl.warp_specialize(
        [
            (_multiply, (
                out_desc, low_desc, up_desc, row_scale, column_scale, bias,
                rows, weights, first_out, full, empty, turns, row_blocks, column_blocks, steps, count,
                outputs, 0, ROWS, COLUMNS, STAGES, GROUPED, RANK, INT8, BIAS, ACTIVATION,
            )),
            (_multiply, (
                out_desc, low_desc, up_desc, row_scale, column_scale, bias,
                rows, weights, second_out, full, empty, turns, row_blocks, column_blocks, steps, count,
                outputs, 1, ROWS, COLUMNS, STAGES, GROUPED, RANK, INT8, BIAS, ACTIVATION,
            )),
            (_fetch, (
                rows_desc, weight_desc, low_desc, up_desc, rows, weights, full, empty,
                row_blocks, column_blocks, steps, ROWS, COLUMNS, CHUNK, STAGES, GROUPED, RANK,
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
    out: Tensor | None = None,
) -> Tensor:
    """(rows, dim) int8 or bf16, (outputs, dim) of the same type -> (rows, outputs) bf16, `out` if given."""
    (count, dim), outputs = rows.shape, weight.shape[0]
    if out is None:
        out = torch.empty((count, outputs), dtype=torch.bfloat16, device=rows.device)
    chunk = 128 // rows.element_size()
    rank = 0 if up is None else up.shape[1]
    out_desc = _describe(out, ROWS, COLUMNS // 2)
    low_desc = out_desc if low is None else _describe(low, ROWS, rank)
    up_desc = out_desc if up is None else _describe(up, COLUMNS, rank)
    tiles = triton.cdiv(count, ROWS) * triton.cdiv(outputs, COLUMNS)
    filler = weight
    row_scale, column_scale = scales or (filler, filler)
    processors = torch.cuda.get_device_properties(rows.device).multi_processor_count
    _product_kernel[(min(processors, tiles),)](
        _describe(rows, ROWS, chunk), _describe(weight, COLUMNS, chunk), low_desc, up_desc, out_desc,
        row_scale, column_scale, filler if bias is None else bias.contiguous(), count, outputs, dim,
        ROWS=ROWS, COLUMNS=COLUMNS, CHUNK=chunk, STAGES=STAGES, GROUPED=GROUPED,
        RANK=rank, INT8=rows.dtype == torch.int8, BIAS=bias is not None, ACTIVATION=activation, num_warps=4,
        **chained(rows.device),
    )  # fmt: skip
    return out


def _describe(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    kind = gl.int8 if matrix.dtype == torch.int8 else gl.bfloat16
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], kind)
    return TensorDescriptor.from_tensor(matrix, [rows, columns], layout)
