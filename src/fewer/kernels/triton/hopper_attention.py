# type: ignore
# Gluon functions look like Python and are not: a type checker cannot read them.
"""Softmax attention to a few keys for Hopper: a program holds all scores of its queries in registers.

All keys and values of the head come at once by the copy engine and stay for all queries of the program, so
there is no running maximum to correct.
A head is a piece of 64 and a rest of 16, 32 or 64, of which the copy engine fills with zeros what is not
there: a head of 72 costs 80, not 128.
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
from fewer.kernels.triton.hopper_parts import RENAMED, fetch, follow, send

CHUNK = 64
MOST_KEYS = 5 * CHUNK
WIDEST = 128


@gluon.jit
def _matrix(buffer, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """A box of shared memory as a matrix of rows."""
    SWIZZLED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=2 * COLUMNS, element_bitwidth=16, rank=2)
    if RENAMED:
        return buffer.reinterpret(gl.bfloat16, [ROWS, COLUMNS], SWIZZLED)
    else:  # noqa: RET505
        return buffer._reinterpret(gl.bfloat16, [ROWS, COLUMNS], SWIZZLED)


@gluon.jit
def _store(desc, buffer, y, batch, row, head, column, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    _matrix(buffer, ROWS, COLUMNS).store(y.to(gl.bfloat16))
    fence_async_shared()
    send(desc, [batch, row, head, column], buffer)


@gluon.jit
def _fetch_all(
    desc, rest_desc, buffer, rest, bar, batch, head, CHUNK: gl.constexpr, CHUNKS: gl.constexpr
):  # fmt: skip
    """All keys, or all values, of one head."""
    mbarrier.expect(bar, CHUNKS * (desc.block_type.nbytes + rest_desc.block_type.nbytes))
    for i in gl.static_range(CHUNKS):
        fetch(desc, [batch, head, i * CHUNK, 0], bar, buffer.index(i))
        fetch(rest_desc, [batch, head, i * CHUNK, 64], bar, rest.index(i))


@gluon.jit
def _masked(
    scores, visible, length, S: gl.constexpr, QUERIES: gl.constexpr, CHUNK: gl.constexpr,
    CHUNKS: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """The largest score of every query, and the scores without the keys that do not count."""
    top = gl.full((QUERIES,), -1.0e30, gl.float32, gl.SliceLayout(1, S))
    seen = ()
    for i in gl.static_range(CHUNKS):
        s = scores[i]
        column = i * CHUNK + gl.arange(0, CHUNK, layout=gl.SliceLayout(0, S))
        if MASKED:
            there = column < length
            there = there & (gl.load(visible + column, mask=there, other=0) != 0)
            s = gl.where(there[None, :], s, -1.0e30)
        elif i == CHUNKS - 1:
            s = gl.where((column < length)[None, :], s, -1.0e30)
        top = gl.maximum(top, gl.max(s, axis=1))
        seen = seen + (s,)
    return top, seen


@gluon.jit
def _attention_kernel(
    query_desc, query_rest_desc, key_desc, key_rest_desc, value_desc, value_rest_desc, out_desc,
    out_rest_desc, visible, tokens, length, scale,
    QUERIES: gl.constexpr, CHUNK: gl.constexpr, CHUNKS: gl.constexpr, REST: gl.constexpr,
    MASKED: gl.constexpr, CHAIN: gl.constexpr,
):  # fmt: skip
    S: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[QUERIES // 16, 1], instr_shape=[16, CHUNK, 16]
    )
    R: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[QUERIES // 16, 1], instr_shape=[16, REST, 16]
    )
    q = gl.allocate_shared_memory(gl.bfloat16, [1, QUERIES, 1, 64], query_desc.layout)
    k = gl.allocate_shared_memory(gl.bfloat16, [CHUNKS, 1, 1, CHUNK, 64], key_desc.layout)
    v = gl.allocate_shared_memory(gl.bfloat16, [CHUNKS, 1, 1, CHUNK, 64], value_desc.layout)
    q_rest = gl.allocate_shared_memory(gl.bfloat16, [1, QUERIES, 1, REST], query_rest_desc.layout)
    k_rest = gl.allocate_shared_memory(gl.bfloat16, [CHUNKS, 1, 1, CHUNK, REST], key_rest_desc.layout)
    v_rest = gl.allocate_shared_memory(gl.bfloat16, [CHUNKS, 1, 1, CHUNK, REST], value_rest_desc.layout)
    here = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(3):
        mbarrier.init(here.index(i), count=1)
    fence_async_shared()
    follow(CHAIN)
    head, batch = gl.program_id(1), gl.program_id(2)
    _fetch_all(key_desc, key_rest_desc, k, k_rest, here.index(1), batch, head, CHUNK, CHUNKS)
    _fetch_all(value_desc, value_rest_desc, v, v_rest, here.index(2), batch, head, CHUNK, CHUNKS)

    turn = 0
    for block in range(gl.program_id(0), gl.cdiv(tokens, QUERIES), gl.num_programs(0)):
        row = block * QUERIES
        # Always 0, which the compiler does not know: else it keeps the addresses of all pieces in registers.
        zero = block >> 24
        bar = here.index(0)
        mbarrier.expect(bar, query_desc.block_type.nbytes + query_rest_desc.block_type.nbytes)
        fetch(query_desc, [batch, row, head, 0], bar, q)
        fetch(query_rest_desc, [batch, row, head, 64], bar, q_rest)
        mbarrier.wait(bar, turn & 1)
        turn += 1
        mbarrier.wait(here.index(1), 0)
        scores = ()
        for i in gl.static_range(CHUNKS):
            s = gl.zeros((QUERIES, CHUNK), gl.float32, S)
            keys = _matrix(k.index(zero + i), CHUNK, 64).permute((1, 0))
            s = warpgroup_mma(_matrix(q, QUERIES, 64), keys, s, is_async=True)
            keys = _matrix(k_rest.index(zero + i), CHUNK, REST).permute((1, 0))
            s = warpgroup_mma(_matrix(q_rest, QUERIES, REST), keys, s, is_async=True)
            scores = scores + (s,)
        if CHUNKS == 1:  # of one it gives that one, of several a tuple
            scores = (warpgroup_mma_wait(num_outstanding=0, deps=scores),)
        else:
            scores = warpgroup_mma_wait(num_outstanding=0, deps=scores)
        top, seen = _masked(scores, visible + batch * length, length, S, QUERIES, CHUNK, CHUNKS, MASKED)
        # In powers of two: `scale` holds the factor log2(e).
        shift = (top * scale)[:, None]
        total = gl.zeros((QUERIES,), gl.float32, gl.SliceLayout(1, S))
        read = gl.zeros((QUERIES, 64), gl.float32, S)
        read_rest = gl.zeros((QUERIES, REST), gl.float32, R)
        mbarrier.wait(here.index(2), 0)
        for i in gl.static_range(CHUNKS):
            weights = gl.exp2(seen[i] * scale - shift)
            total += gl.sum(weights, axis=1)
            weights = weights.to(gl.bfloat16)
            left = gl.convert_layout(weights, gl.DotOperandLayout(0, S, 2))
            read = warpgroup_mma(left, _matrix(v.index(zero + i), CHUNK, 64), read)
            left = gl.convert_layout(weights, gl.DotOperandLayout(0, R, 2))
            read_rest = warpgroup_mma(left, _matrix(v_rest.index(zero + i), CHUNK, REST), read_rest)
        inverse = 1.0 / total
        _store(out_desc, q, read * inverse[:, None], batch, row, head, 0, QUERIES, 64)
        inverse = gl.convert_layout(inverse, gl.SliceLayout(1, R))
        _store(out_rest_desc, q_rest, read_rest * inverse[:, None], batch, row, head, 64, QUERIES, REST)
        # The next queries come to where these results leave from.
        tma.store_wait(0)


def fits_attention(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernel takes these: bf16, heads of 65 to 128 in whole 16 bytes, few keys, rows to copy."""
    wide = query.shape[3]
    return (
        query.dtype == keys.dtype == values.dtype == torch.bfloat16
        and 64 < wide <= WIDEST
        and wide % 8 == 0
        and 0 < keys.shape[2] <= MOST_KEYS
        and query.numel() > 0
    )


def launch_attention(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, queries: int | None = None
) -> Tensor:
    """As `reference_cross_attention`, for what `fits_attention`. `queries` of a program: 64 or 128."""
    query, keys, values = (_copyable(tensor) for tensor in (query, keys, values))
    batch, tokens, heads, wide = query.shape
    length = keys.shape[2]
    rest = next(size for size in (16, 32, 64) if wide <= 64 + size)
    # Two programs fit into a processor where the rest is small; else one twice as large.
    queries = queries or (64 if rest == 16 else 128)
    out = torch.empty((batch, tokens, heads, wide), dtype=query.dtype, device=query.device)
    descriptors = []
    for tensor, box in ((query, [1, queries, 1]), (keys, [1, 1, CHUNK]), (values, [1, 1, CHUNK])):
        descriptors += [_describe(tensor, [*box, 64]), _describe(tensor, [*box, rest])]
    descriptors += [_describe(out, [1, queries, 1, 64]), _describe(out, [1, queries, 1, rest])]
    # As many programs as fit at the same time: each reads keys and values once for several blocks of queries.
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    at_once = processors * (2 if queries == 64 and rest == 16 else 1)
    blocks = min(triton.cdiv(tokens, queries), max(1, at_once // (heads * batch)))
    _attention_kernel[(blocks, heads, batch)](
        *descriptors, query if visible is None else visible.contiguous().view(torch.uint8), tokens, length,
        1.4426950408889634 / wide**0.5, QUERIES=queries, CHUNK=CHUNK, CHUNKS=triton.cdiv(length, CHUNK),
        REST=rest, MASKED=visible is not None, num_warps=queries // 16,
        **chained(query.device),
    )  # fmt: skip
    return out


def _copyable(tensor: Tensor) -> Tensor:
    """Itself if the copy engine can address it: rows in one piece, everything else in steps of 16 bytes."""
    plain = tensor.stride(3) == 1 and all(stride % 8 == 0 for stride in tensor.stride()[:3])
    return tensor if plain and tensor.data_ptr() % 16 == 0 else tensor.contiguous()


def _describe(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(
        tensor, block, gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    )
