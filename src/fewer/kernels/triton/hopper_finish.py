# type: ignore
# Gluon functions look like Python and are not: a type checker cannot read them.
"""What becomes of a product's tile on Hopper: bias, activation and rounding, or states of attention."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from fewer.kernels.triton.hopper_parts import gate_by_tanh, send


@gluon.jit
def biased(y, bias, first, outputs, BIAS: gl.constexpr):
    if BIAS:
        column = first + gl.arange(0, y.shape[1], layout=gl.SliceLayout(0, y.type.layout))
        y += gl.load(bias + column, mask=column < outputs, other=0.0).to(gl.float32)[None, :]
    return y


@gluon.jit
def finish(
    y, out_desc, bias, buffer, row, first, skip, outputs, BIAS: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """The rest of the work on 64 columns of the tile, which are then sent off, `skip` columns to the left."""
    y = biased(y, bias, first, outputs, BIAS)
    if ACTIVATION == 1:
        y = gate_by_tanh(y, y)
    elif ACTIVATION == 2:
        y = gate_by_tanh(y, 1.5957691216057308 * (y + 0.044715 * y * y * y))
    tma.store_wait(0)
    buffer.store(y.to(gl.bfloat16))
    fence_async_shared()
    send(out_desc, [row, first - skip], buffer)


@gluon.jit
def sum_up(
    keys, values, states, bias, key_buffer, value_buffer, row, first, skip, outputs, tokens, batches,
    BIAS: gl.constexpr,
):  # fmt: skip
    """Keys and values of two heads, 128 tokens: what linear attention keeps of them, ones below the rest.

    Rounded and added up as the kernel of that attention does with rows from memory.
    """
    ROWS: gl.constexpr = keys.shape[0]
    keys = gl.maximum(biased(keys, bias, first, outputs, BIAS).to(gl.bfloat16).to(gl.float32), 0.0)
    values = biased(values, bias, first + 64, outputs, BIAS).to(gl.bfloat16)
    tma.store_wait(0)
    key_buffer.store(keys.to(gl.bfloat16))
    value_buffer.store(values)
    fence_async_shared()
    S: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16]
    )
    total = gl.zeros((64, 64), gl.float32, S)
    total = warpgroup_mma(value_buffer.permute((1, 0)), key_buffer, total, is_async=True)
    total = warpgroup_mma_wait(num_outstanding=0, deps=[total])
    heads = skip // 64
    part = (row % tokens) // ROWS
    base = states + ((part * batches + row // tokens) * heads + first // 64).to(gl.int64) * 1056
    of_value = gl.arange(0, 64, layout=gl.SliceLayout(1, S))[:, None]
    of_key = gl.arange(0, 64, layout=gl.SliceLayout(0, S))[None, :]
    where = (of_value // 32) * 1056 + (of_value % 32) * 32 + of_key % 32
    gl.store(base + where, total, mask=of_value // 32 == of_key // 32)
    column = gl.arange(0, 64, layout=gl.SliceLayout(0, keys.type.layout))
    gl.store(base + (column // 32) * 1056 + 1024 + column % 32, gl.sum(keys, axis=0))
