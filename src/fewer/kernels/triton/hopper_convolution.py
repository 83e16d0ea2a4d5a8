# type: ignore
# Gluon functions look like Python and are not: a type checker cannot read them.
"""Convolution for Hopper as a matrix product whose rows are pixels: the copy engine fetches each tap's patch.

Work is divided as in `hopper_product`: one warp fetches, two groups of warps multiply, each with its own half
of the pixels of a tile and the same weights. A tap is the same patch moved by a pixel; outside the picture
the copy engine writes zeros. Where one tile holds all channels, the norm over them is part of the kernel.
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

from fewer.kernels.triton.hopper_parts import RENAMED, fetch, gate_by_tanh, send

CHUNK = 64
STAGES = 4
WIDE = 16
ACTIVATIONS = {"none": 0, "silu": 1, "relu": 2}


@gluon.jit
def _place(tile, column_blocks, across, down, HIGH: gl.constexpr, WIDE: gl.constexpr):
    """(block of channels, picture, first line, first column) of a tile."""
    patch = tile // column_blocks
    y, x = ((patch // across) % down) * (2 * HIGH), (patch % across) * WIDE
    return tile % column_blocks, patch // (across * down), y, x


@gluon.jit
def _fetch(
    pixels_desc, weight_desc, other_desc, upper, lower, weights, full, empty,
    tiles, column_blocks, across, down, chunks, top, left,
    HIGH: gl.constexpr, WIDE: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr,
    SIDE: gl.constexpr, SUM: gl.constexpr,
):  # fmt: skip
    index = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        block, image, y, x = _place(tile, column_blocks, across, down, HIGH, WIDE)
        for step in range(SIDE * SIDE * chunks):
            tap, channel = step // chunks, (step % chunks) * CHUNK
            line, column = y + tap // SIDE + top, x + tap % SIDE + left
            stage = index % STAGES
            mbarrier.wait(empty.index(stage), ((index // STAGES) & 1) ^ 1)
            bar = full.index(stage)
            mbarrier.expect(bar, pixels_desc.block_type.nbytes * 2 + weight_desc.block_type.nbytes)
            fetch(pixels_desc, [image, line, column, channel], bar, upper.index(stage))
            line += HIGH
            fetch(pixels_desc, [image, line, column, channel], bar, lower.index(stage))
            fetch(weight_desc, [block * COLUMNS, step * CHUNK], bar, weights.index(stage))
            index += 1
        if SUM:
            # What is added comes through the same ring, as further steps.
            for piece in range(COLUMNS // CHUNK):
                stage = index % STAGES
                mbarrier.wait(empty.index(stage), ((index // STAGES) & 1) ^ 1)
                bar = full.index(stage)
                mbarrier.expect(bar, other_desc.block_type.nbytes * 2)
                channel = block * COLUMNS + piece * CHUNK
                fetch(other_desc, [image, y, x, channel], bar, upper.index(stage))
                line = y + HIGH
                fetch(other_desc, [image, line, x, channel], bar, lower.index(stage))
                index += 1


@gluon.jit
def _flat(buffer, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """A patch of shared memory as rows of pixels."""
    FLAT: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    if RENAMED:
        return buffer.reinterpret(gl.bfloat16, [ROWS, COLUMNS], FLAT)
    else:  # noqa: RET505
        return buffer._reinterpret(gl.bfloat16, [ROWS, COLUMNS], FLAT)


@gluon.jit
def _halves(y, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """The left and the right half of the columns."""
    return y.reshape((ROWS, 2, COLUMNS // 2)).permute((0, 2, 1)).split()


@gluon.jit
def _finish(
    y, out_desc, bias, norm_weight, half, buffer, full, empty, index, image, y0, x0, first, channels,
    HIGH: gl.constexpr, WIDE: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr, BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr, NORM: gl.constexpr, SUM: gl.constexpr,
):  # fmt: skip
    """The rest of the work on some channels of the tile, which are then sent off; few, so that they fit."""
    channel = first + gl.arange(0, CHUNK, layout=gl.SliceLayout(0, y.type.layout))
    if NORM:
        y *= gl.load(norm_weight + channel, mask=channel < channels, other=0.0).to(gl.float32)[None, :]
    if BIAS:
        y += gl.load(bias + channel, mask=channel < channels, other=0.0).to(gl.float32)[None, :]
    if ACTIVATION == 1:
        y = gate_by_tanh(y, y)
    elif ACTIVATION == 2:
        y = gl.maximum(y, 0.0)
    if SUM:
        stage = index % STAGES
        mbarrier.wait(full.index(stage), (index // STAGES) & 1)
        y += _flat(half.index(stage), HIGH * WIDE, CHUNK).load(y.type.layout).to(gl.float32)
        mbarrier.arrive(empty.index(stage), count=1)
        index += 1
    tma.store_wait(0)
    buffer.store(y.to(gl.bfloat16))
    fence_async_shared()
    if RENAMED:
        view = buffer.reinterpret(gl.bfloat16, [1, HIGH, WIDE, CHUNK], out_desc.layout)
    else:
        view = buffer._reinterpret(gl.bfloat16, [1, HIGH, WIDE, CHUNK], out_desc.layout)
    send(out_desc, [image, y0, x0, first], view)
    return index


@gluon.jit
def _multiply(
    out_desc, bias, norm_weight, half, weights, buffer, full, empty,
    tiles, column_blocks, across, down, chunks, height, width, channels, eps,
    WHICH: gl.constexpr, HIGH: gl.constexpr, WIDE: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr,
    STAGES: gl.constexpr, SIDE: gl.constexpr, BIAS: gl.constexpr, ACTIVATION: gl.constexpr,
    NORM: gl.constexpr, SUM: gl.constexpr,
):  # fmt: skip
    HALF: gl.constexpr = HIGH * WIDE
    F: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, COLUMNS, 16]
    )
    index = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        block, image, y0, x0 = _place(tile, column_blocks, across, down, HIGH, WIDE)
        y0 += WHICH * HIGH
        total = gl.zeros((HALF, COLUMNS), gl.float32, F)
        for step in range(SIDE * SIDE * chunks):
            stage = index % STAGES
            mbarrier.wait(full.index(stage), (index // STAGES) & 1)
            pixels = _flat(half.index(stage), HALF, CHUNK)
            total = warpgroup_mma(pixels, weights.index(stage).permute((1, 0)), total, is_async=True)
            # The product before this one is done, so its stage may be filled again.
            total = warpgroup_mma_wait(num_outstanding=1, deps=[total])
            mbarrier.arrive(empty.index((index + STAGES - 1) % STAGES), count=1, pred=step > 0)
            index += 1
        total = warpgroup_mma_wait(num_outstanding=0, deps=[total])
        mbarrier.arrive(empty.index((index + STAGES - 1) % STAGES), count=1)
        if NORM:
            # One division a pixel, not one a number.
            total = total * (1.0 / gl.sqrt(gl.sum(total * total, axis=1) / channels + eps))[:, None]
        first = block * COLUMNS
        low, high = _halves(total, HALF, COLUMNS)
        if COLUMNS == 256:
            one, two = _halves(low, HALF, 128)
            index = _finish(
                one, out_desc, bias, norm_weight, half, buffer, full, empty, index, image, y0, x0, first,
                channels, HIGH, WIDE, CHUNK, STAGES, BIAS, ACTIVATION, NORM, SUM,
            )  # fmt: skip
            index = _finish(
                two, out_desc, bias, norm_weight, half, buffer, full, empty, index, image, y0, x0, first + 64,
                channels, HIGH, WIDE, CHUNK, STAGES, BIAS, ACTIVATION, NORM, SUM,
            )  # fmt: skip
            low, high = _halves(high, HALF, 128)
            first += 128
        index = _finish(
            low, out_desc, bias, norm_weight, half, buffer, full, empty, index, image, y0, x0, first,
            channels, HIGH, WIDE, CHUNK, STAGES, BIAS, ACTIVATION, NORM, SUM,
        )  # fmt: skip
        index = _finish(
            high, out_desc, bias, norm_weight, half, buffer, full, empty, index, image, y0, x0, first + 64,
            channels, HIGH, WIDE, CHUNK, STAGES, BIAS, ACTIVATION, NORM, SUM,
        )  # fmt: skip
    tma.store_wait(0)


@gluon.jit
def _convolution_kernel(
    pixels_desc, weight_desc, out_desc, other_desc, bias, norm_weight,
    tiles, column_blocks, across, down, chunks, height, width, channels, top, left, eps,
    HIGH: gl.constexpr, WIDE: gl.constexpr, COLUMNS: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr,
    SIDE: gl.constexpr, BIAS: gl.constexpr, ACTIVATION: gl.constexpr, NORM: gl.constexpr, SUM: gl.constexpr,
):  # fmt: skip
    FLAT: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    upper = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, HIGH, WIDE, CHUNK], pixels_desc.layout)
    lower = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, HIGH, WIDE, CHUNK], pixels_desc.layout)
    weights = gl.allocate_shared_memory(gl.bfloat16, [STAGES, COLUMNS, CHUNK], weight_desc.layout)
    first_out = gl.allocate_shared_memory(gl.bfloat16, [HIGH * WIDE, CHUNK], FLAT)
    second_out = gl.allocate_shared_memory(gl.bfloat16, [HIGH * WIDE, CHUNK], FLAT)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_multiply, (
                out_desc, bias, norm_weight, upper, weights, first_out, full, empty,
                tiles, column_blocks, across, down, chunks, height, width, channels, eps,
                0, HIGH, WIDE, COLUMNS, CHUNK, STAGES, SIDE, BIAS, ACTIVATION, NORM, SUM,
            )),
            (_multiply, (
                out_desc, bias, norm_weight, lower, weights, second_out, full, empty,
                tiles, column_blocks, across, down, chunks, height, width, channels, eps,
                1, HIGH, WIDE, COLUMNS, CHUNK, STAGES, SIDE, BIAS, ACTIVATION, NORM, SUM,
            )),
            (_fetch, (
                pixels_desc, weight_desc, other_desc, upper, lower, weights, full, empty,
                tiles, column_blocks, across, down, chunks, top, left,
                HIGH, WIDE, COLUMNS, CHUNK, STAGES, SIDE, SUM,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


def launch_convolution(
    pixels: Tensor,
    weight: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    norm_weight: Tensor | None = None,
    other: Tensor | None = None,
    phase: tuple[int, int] | None = None,
    eps: float = 1e-5,
) -> None:
    """(batch, height, width, in) bf16 and (out, 9·in) into `out` (batch, height, width, out) of any strides.

    With `norm_weight`, RMS norm over all channels (at most 256) comes before `bias`. `other` is added last.
    With `phase` the four taps are those of one quarter of the pixels of a doubled picture, of which `out` is
    a strided view.
    """
    batch, height, width, channels_in = pixels.shape
    channels = weight.shape[0]
    columns = 256 if channels % 256 == 0 else 128
    high = (64 if columns == 256 else 128) // WIDE
    side = 3 if phase is None else 2
    top, left = (-1, -1) if phase is None else (phase[0] - 1, phase[1] - 1)
    across, down = triton.cdiv(width, WIDE), triton.cdiv(height, 2 * high)
    column_blocks = triton.cdiv(channels, columns)
    tiles = batch * across * down * column_blocks
    processors = torch.cuda.get_device_properties(pixels.device).multi_processor_count
    filler = weight
    _convolution_kernel[(min(processors, tiles),)](
        _describe(pixels, [1, high, WIDE, CHUNK]), _describe(weight, [columns, CHUNK]),
        _describe(out, [1, high, WIDE, CHUNK]),
        _describe(out if other is None else other, [1, high, WIDE, CHUNK]),
        filler if bias is None else bias, filler if norm_weight is None else norm_weight,
        tiles, column_blocks, across, down, channels_in // CHUNK, height, width, channels, top, left, eps,
        HIGH=high, WIDE=WIDE, COLUMNS=columns, CHUNK=CHUNK, STAGES=STAGES, SIDE=side, BIAS=bias is not None,
        ACTIVATION=ACTIVATIONS[activation], NORM=norm_weight is not None, SUM=other is not None,
        num_warps=4,
    )  # fmt: skip


def _describe(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(
        tensor, block, gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    )
