# type: ignore
# Gluon functions look like Python and are not: a type checker cannot read them.
"""The matrix product for Hopper: one warp fetches tiles ahead, two groups of warps multiply in turns.

A program goes through tiles of 128 × 128. Its copying warp keeps a ring of shared-memory stages filled;
while one group of warps finishes a tile (scales, bias, activation, storing), the other multiplies the next:
where the sum over columns is short, finishing takes a fifth of the time, and here it costs nothing. Groups
hand over the turn, since the barriers of the ring only tell even rounds from odd ones. The low-rank pair of
a tile has room of its own, and is fetched by the group that will multiply it, before the tile's turn. Tiles
of a last round that would leave half of the processors idle are halved.
"""

from dataclasses import dataclass

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
from fewer.kernels.triton.hopper_finish import finish, sum_up
from fewer.kernels.triton.hopper_parts import fetch, follow, tile_of

ROWS = 128
COLUMNS = 128
STAGES = 6
GROUPED = 8


@gluon.jit
def _place(tile, row_blocks, column_blocks, GROUPED: gl.constexpr):
    """Tiles that share weights run at the same time, so that these are read from the L2."""
    in_group = GROUPED * column_blocks
    first = (tile // in_group) * GROUPED
    height = gl.minimum(row_blocks - first, GROUPED)
    return first + (tile % in_group) % height, (tile % in_group) // height


@gluon.jit
def _fetch_tile(
    rows_desc, weight_desc, rows, weights, full, empty, row, column, steps, index,
    COLUMNS: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """All that one tile multiplies, stage after stage; `weight_desc` copies as many outputs as it has."""
    for step in range(steps):
        stage = index % STAGES
        mbarrier.wait(empty.index(stage), ((index // STAGES) & 1) ^ 1)
        bar = full.index(stage)
        mbarrier.expect(bar, rows_desc.block_type.nbytes + weight_desc.block_type.nbytes)
        depth = step * CHUNK
        fetch(rows_desc, [row, depth], bar, rows.index(stage))
        fetch(weight_desc, [column, depth], bar, tile_of(weight_desc, weights.index(stage), COLUMNS, CHUNK))
        index += 1
    return index


@gluon.jit
def _fetch(
    rows_desc, weight_desc, half_weight_desc, rows, weights, full, empty, row_blocks, column_blocks, steps,
    whole,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr,
    GROUPED: gl.constexpr, HALVES: gl.constexpr,
):  # fmt: skip
    index = 0
    for tile in range(gl.program_id(0), whole, gl.num_programs(0)):
        row_block, column_block = _place(tile, row_blocks, column_blocks, GROUPED)
        index = _fetch_tile(
            rows_desc, weight_desc, rows, weights, full, empty,
            row_block * ROWS, column_block * COLUMNS, steps, index, COLUMNS, CHUNK, STAGES,
        )  # fmt: skip
    if HALVES:
        half = gl.program_id(0)
        if half < 2 * (row_blocks * column_blocks - whole):
            row_block, column_block = _place(whole + half // 2, row_blocks, column_blocks, GROUPED)
            column = column_block * COLUMNS + (half % 2) * (COLUMNS // 2)
            _fetch_tile(
                rows_desc, half_weight_desc, rows, weights, full, empty,
                row_block * ROWS, column, steps, index, COLUMNS // 2, CHUNK, STAGES,
            )  # fmt: skip


@gluon.jit
def _multiply_tile(
    weight_desc, out_desc, low_desc, up_desc, row_scale, column_scale, bias, rows, weights, buffer, low_rows,
    up_rows, full, empty, turns, came, row, column, steps, index, turn, count, outputs, states, values, skip,
    tokens,
    WHICH: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr,
    STAGES: gl.constexpr, RANK: gl.constexpr, INT8: gl.constexpr, BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr, STATES: gl.constexpr,
):  # fmt: skip
    """One tile of `COLUMNS` outputs, 128 or 64, from its first stage, `index`, to its last number sent."""
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
    if RANK > 0:
        # In the ring it would hold a stage until it is needed, last of all, and keep the other group waiting.
        bar = came.index(WHICH)
        mbarrier.expect(bar, low_desc.block_type.nbytes + up_desc.block_type.nbytes)
        low, up = low_rows.index(WHICH), tile_of(up_desc, up_rows.index(WHICH), COLUMNS, RANK)
        fetch(low_desc, [row, 0], bar, low)
        fetch(up_desc, [column, 0], bar, up)
    # The first turn is group 0's without waiting.
    mbarrier.wait(turns.index(WHICH), (turn & 1) ^ (1 - WHICH))
    total = gl.zeros((ROWS, COLUMNS), KIND, SUM)
    for step in range(steps):
        stage = index % STAGES
        mbarrier.wait(full.index(stage), (index // STAGES) & 1)
        weight = tile_of(weight_desc, weights.index(stage), COLUMNS, CHUNK)
        total = warpgroup_mma(rows.index(stage), weight.permute((1, 0)), total, is_async=True)
        # The product before this one is done, so its stage may be filled again.
        total = warpgroup_mma_wait(num_outstanding=1, deps=[total])
        mbarrier.arrive(empty.index((index + STAGES - 1) % STAGES), count=1, pred=step > 0)
        index += 1
    # All stages of this tile have come, and its products are queued before the other group's.
    mbarrier.arrive(turns.index(1 - WHICH), count=1)
    total = warpgroup_mma_wait(num_outstanding=0, deps=[total])
    mbarrier.arrive(empty.index((index + STAGES - 1) % STAGES), count=1)

    if INT8:
        y = gl.convert_layout(total.to(gl.float32), F)
        line = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, F))
        here = column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, F))
        y = y * gl.load(row_scale + line, mask=line < count, other=0.0)[:, None]
        y = y * gl.load(column_scale + here, mask=here < outputs, other=0.0).to(gl.float32)[None, :]
    else:
        y = total
    if RANK > 0:
        mbarrier.wait(came.index(WHICH), turn & 1)
        y = warpgroup_mma(low, up.permute((1, 0)), y, is_async=True)
        y = warpgroup_mma_wait(num_outstanding=0, deps=[y])
    if COLUMNS == 64:
        finish(y, out_desc, bias, buffer, row, column, skip, outputs, BIAS, ACTIVATION)
    else:
        left, right = y.reshape((ROWS, 2, COLUMNS // 2)).permute((0, 2, 1)).split()
        if STATES:
            if column < skip:
                sum_up(
                    left, right, states, bias, buffer, values.index(WHICH), row, column, skip, outputs,
                    tokens, count // tokens, BIAS,
                )  # fmt: skip
            else:
                finish(left, out_desc, bias, buffer, row, column, skip, outputs, BIAS, ACTIVATION)
                finish(right, out_desc, bias, buffer, row, column + 64, skip, outputs, BIAS, ACTIVATION)
        else:
            finish(left, out_desc, bias, buffer, row, column, skip, outputs, BIAS, ACTIVATION)
            finish(right, out_desc, bias, buffer, row, column + 64, skip, outputs, BIAS, ACTIVATION)


@gluon.jit
def _multiply(
    weight_desc, half_weight_desc, out_desc, low_desc, up_desc, half_up_desc, row_scale, column_scale, bias,
    rows, weights, buffer, low_rows, up_rows, full, empty, turns, came, row_blocks, column_blocks, steps,
    count, outputs, whole, states, values, skip, tokens,
    WHICH: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr,
    STAGES: gl.constexpr, GROUPED: gl.constexpr, RANK: gl.constexpr, INT8: gl.constexpr,
    BIAS: gl.constexpr, ACTIVATION: gl.constexpr, HALVES: gl.constexpr, STATES: gl.constexpr,
):  # fmt: skip
    turn = 0
    start = gl.program_id(0) + WHICH * gl.num_programs(0)
    for tile in range(start, whole, 2 * gl.num_programs(0)):
        row_block, column_block = _place(tile, row_blocks, column_blocks, GROUPED)
        _multiply_tile(
            weight_desc, out_desc, low_desc, up_desc, row_scale, column_scale, bias, rows, weights, buffer,
            low_rows, up_rows, full, empty, turns, came, row_block * ROWS, column_block * COLUMNS, steps,
            (2 * turn + WHICH) * steps, turn, count, outputs, states, values, skip, tokens,
            WHICH, ROWS, COLUMNS, CHUNK, STAGES, RANK, INT8, BIAS, ACTIVATION, STATES,
        )  # fmt: skip
        turn += 1
    if HALVES:
        # All programs have had as many whole tiles; the half one is the next group's.
        rounds = whole // gl.num_programs(0)
        half = gl.program_id(0)
        if (rounds % 2 == WHICH) & (half < 2 * (row_blocks * column_blocks - whole)):
            row_block, column_block = _place(whole + half // 2, row_blocks, column_blocks, GROUPED)
            column = column_block * COLUMNS + (half % 2) * (COLUMNS // 2)
            _multiply_tile(
                half_weight_desc, out_desc, low_desc, half_up_desc, row_scale, column_scale, bias, rows,
                weights, buffer, low_rows, up_rows, full, empty, turns, came, row_block * ROWS, column, steps,
                rounds * steps, turn, count, outputs, states, values, skip, tokens,
                WHICH, ROWS, COLUMNS // 2, CHUNK, STAGES, RANK, INT8, BIAS, ACTIVATION, STATES,
            )  # fmt: skip
    tma.store_wait(0)


@gluon.jit
def _product_kernel(
    rows_desc, weight_desc, low_desc, up_desc, half_weight_desc, half_up_desc, out_desc, row_scale,
    column_scale, bias, states, count, outputs, dim, whole, skip, tokens,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr,
    GROUPED: gl.constexpr, RANK: gl.constexpr, INT8: gl.constexpr, BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr, HALVES: gl.constexpr, STATES: gl.constexpr, CHAIN: gl.constexpr,
):  # fmt: skip
    rows = gl.allocate_shared_memory(rows_desc.dtype, [STAGES, ROWS, CHUNK], rows_desc.layout)
    weights = gl.allocate_shared_memory(weight_desc.dtype, [STAGES, COLUMNS, CHUNK], weight_desc.layout)
    first_out = gl.allocate_shared_memory(gl.bfloat16, [ROWS, COLUMNS // 2], out_desc.layout)
    second_out = gl.allocate_shared_memory(gl.bfloat16, [ROWS, COLUMNS // 2], out_desc.layout)
    values = rows
    if STATES:
        values = gl.allocate_shared_memory(gl.bfloat16, [2, ROWS, COLUMNS // 2], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    came = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    low_rows, up_rows = rows, weights
    if RANK > 0:
        low_rows = gl.allocate_shared_memory(gl.bfloat16, [2, ROWS, RANK], low_desc.layout)
        up_rows = gl.allocate_shared_memory(gl.bfloat16, [2, COLUMNS, RANK], up_desc.layout)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
        mbarrier.init(came.index(i), count=1)
    fence_async_shared()
    follow(CHAIN)
    row_blocks, column_blocks = gl.cdiv(count, ROWS), gl.cdiv(outputs, COLUMNS)
    steps = gl.cdiv(dim, CHUNK)
    gl.warp_specialize(
        [
            (_multiply, (
                weight_desc, half_weight_desc, out_desc, low_desc, up_desc, half_up_desc, row_scale,
                column_scale, bias, rows, weights, first_out, low_rows, up_rows, full, empty, turns, came,
                row_blocks, column_blocks, steps, count, outputs, whole, states, values, skip, tokens, 0,
                ROWS, COLUMNS, CHUNK, STAGES, GROUPED, RANK, INT8, BIAS, ACTIVATION, HALVES, STATES,
            )),
            (_multiply, (
                weight_desc, half_weight_desc, out_desc, low_desc, up_desc, half_up_desc, row_scale,
                column_scale, bias, rows, weights, second_out, low_rows, up_rows, full, empty, turns, came,
                row_blocks, column_blocks, steps, count, outputs, whole, states, values, skip, tokens, 1,
                ROWS, COLUMNS, CHUNK, STAGES, GROUPED, RANK, INT8, BIAS, ACTIVATION, HALVES, STATES,
            )),
            (_fetch, (
                rows_desc, weight_desc, half_weight_desc, rows, weights, full, empty, row_blocks,
                column_blocks, steps, whole, ROWS, COLUMNS, CHUNK, STAGES, GROUPED, HALVES,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class States:
    """Where a product of keys, values and queries leaves what linear attention keeps of the former."""

    sums: Tensor
    """(parts, batch, heads, 33, 32) in fp32, a part for 128 tokens."""
    tokens: int


def launch_product(
    rows: Tensor,
    weight: Tensor,
    scales: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    low: Tensor | None,
    up: Tensor | None,
    activation: int,
    out: Tensor | None = None,
    states: States | None = None,
) -> Tensor:
    """(rows, dim) int8 or bf16, (outputs, dim) of the same type -> (rows, outputs) bf16, `out` if given.

    With `states` the outputs are, for two heads of 32 at a time, keys and values of both, then all queries,
    which alone come back. Batches of whole 128 tokens follow one another in the rows.
    """
    (count, dim), outputs = rows.shape, weight.shape[0]
    skip, tokens = (0, count) if states is None else (64 * states.sums.shape[2], states.tokens)
    if out is None:
        out = torch.empty((count, outputs - skip), dtype=torch.bfloat16, device=rows.device)
    chunk = 128 // rows.element_size()
    rank = 0 if up is None else up.shape[1]
    out_desc = _describe(out, ROWS, COLUMNS // 2)
    low_desc = out_desc if low is None else _describe(low, ROWS, rank)
    up_desc = out_desc if up is None else _describe(up, COLUMNS, rank)
    half_up_desc = out_desc if up is None else _describe(up, COLUMNS // 2, rank)
    processors = torch.cuda.get_device_properties(rows.device).multi_processor_count
    row_blocks, column_blocks = triton.cdiv(count, ROWS), triton.cdiv(outputs, COLUMNS)
    grid, whole, halves = rounds(row_blocks * column_blocks, processors)
    if (
        halves
        and states is not None
        and row_blocks * column_blocks - whole
        > queries_at_the_end(row_blocks, column_blocks - skip // COLUMNS)
    ):
        grid, whole, halves = min(processors, row_blocks * column_blocks), row_blocks * column_blocks, False
    filler = weight
    row_scale, column_scale = scales or (filler, filler)
    stages = STAGES - rank // 32 - (rank % 32 > 0) - (states is not None)
    _product_kernel[(grid,)](
        _describe(rows, ROWS, chunk), _describe(weight, COLUMNS, chunk), low_desc, up_desc,
        _describe(weight, COLUMNS // 2, chunk), half_up_desc, out_desc,
        row_scale, column_scale, filler if bias is None else bias.contiguous(),
        row_scale if states is None else states.sums, count, outputs, dim, whole, skip, tokens,
        ROWS=ROWS, COLUMNS=COLUMNS, CHUNK=chunk, STAGES=stages, GROUPED=GROUPED, RANK=rank,
        INT8=rows.dtype == torch.int8, BIAS=bias is not None, ACTIVATION=activation,
        HALVES=halves, STATES=states is not None, num_warps=4, **chained(rows.device),
    )  # fmt: skip
    return out


def rounds(tiles: int, processors: int) -> tuple[int, int, bool]:
    """(programs, tiles multiplied whole, whether the rest is halved): few processors wait at the end."""
    if 2 * tiles <= processors:
        return 2 * tiles, 0, True
    left = tiles % processors if tiles > processors else 0
    halved = 0 < 2 * left <= processors
    return min(tiles, processors), tiles - left if halved else tiles, halved


def queries_at_the_end(row_blocks: int, query_blocks: int) -> int:
    """How many of the last tiles, in the order of `_place`, are queries, which may be halved."""
    return ((row_blocks - 1) % GROUPED + 1) * query_blocks


def _describe(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    kind = gl.int8 if matrix.dtype == torch.int8 else gl.bfloat16
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], kind)
    return TensorDescriptor.from_tensor(matrix, [rows, columns], layout)
