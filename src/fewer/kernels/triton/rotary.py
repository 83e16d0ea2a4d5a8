"""RMS norm and rotation in Triton: a program owns some heads, of queries or keys, wherever they stand.

Heads are counted through all rows, so no lane is empty where their number is no power of two. A head is read
once and written once, in runs of 16 bytes; both numbers of a pair are the same thread's.
"""

import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.chain import chained, follow

HEADS = 32
"""Heads of a program; 4,096 numbers of the usual 128."""


@triton.jit
def _norm_and_rotate_kernel(
    joint, query_weight, key_weight, cos, sin, count, heads, eps, row_stride, cos_stride, sin_stride,
    DIM: tl.constexpr, LANES: tl.constexpr, HEADS: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    follow(CHAIN)
    unit = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    row, place = (unit // (2 * heads)).to(tl.int64), unit % (2 * heads)
    column, half = tl.arange(0, LANES), tl.arange(0, LANES // 2)
    known = column < DIM
    inside = (unit < count)[:, None] & known[None, :]
    where = joint + (row * row_stride)[:, None] + (place * DIM)[:, None] + column[None, :]
    x = tl.load(where, mask=inside, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)[:, None]
    of_query = tl.load(query_weight + column, mask=known, other=0.0).to(tl.float32)
    of_key = tl.load(key_weight + column, mask=known, other=0.0).to(tl.float32)
    x = x * tl.where((place < heads)[:, None], of_query[None, :], of_key[None, :])
    even, odd = tl.split(tl.reshape(x, (HEADS, LANES // 2, 2)))
    turned = (unit < count)[:, None] & (half < DIM // 2)[None, :]
    c = tl.load(cos + (row * cos_stride)[:, None] + half[None, :], mask=turned, other=0.0).to(tl.float32)
    s = tl.load(sin + (row * sin_stride)[:, None] + half[None, :], mask=turned, other=0.0).to(tl.float32)
    y = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (HEADS, LANES))
    tl.store(where, y.to(joint.dtype.element_ty), mask=inside)


def launch_norm_and_rotate(
    joint: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
    heads_each: int = HEADS,
    warps: int = 8,
) -> None:
    """As `reference_norm_and_rotate`, in place; rows need columns side by side."""
    rows, dim = joint.shape[0], query_weight.shape[0]
    count = rows * 2 * heads
    if not count:
        return
    if joint.stride(1) != 1:
        copy = joint.contiguous()
        launch_norm_and_rotate(copy, query_weight, key_weight, cos, sin, heads, eps, heads_each, warps)
        joint.copy_(copy)
        return
    cos, sin = (table if table.stride(1) == 1 else table.contiguous() for table in (cos, sin))
    _norm_and_rotate_kernel[(triton.cdiv(count, heads_each),)](
        joint, query_weight.contiguous(), key_weight.contiguous(), cos, sin, count, heads, eps,
        joint.stride(0), cos.stride(0), sin.stride(0),
        DIM=dim, LANES=max(2, triton.next_power_of_2(dim)), HEADS=heads_each, num_warps=warps,
        **chained(joint.device),
    )  # fmt: skip
