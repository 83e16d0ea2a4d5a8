"""Parts of kernels that own one row: it lies in registers as two pieces, so that few of them hold nothing.

A width between powers of two (1,152, 2,240) in one block of the next power would leave almost half of the
registers empty, and the processor with half as many rows at a time.
"""

import triton
import triton.language as tl


def pieces(dim: int) -> dict[str, int]:
    """The sizes of both pieces, and the warps that share a row."""
    first = max(16, triton.next_power_of_2(dim) // 2)
    second = max(16, triton.next_power_of_2(max(1, dim - first)))
    return {
        "FIRST": first,
        "SECOND": second,
        "num_warps": 2 if first <= 1024 else (4 if first <= 2048 else 8),
    }


@triton.jit
def summed(x, update, gate, total, columns, dim, UPDATE: tl.constexpr, GATE: tl.constexpr):
    """Some columns of x + gate · update in fp32; the sum is rounded and stored. Pointers are the row's."""
    known = columns < dim
    v = tl.load(x + columns, mask=known, other=0.0).to(tl.float32)
    if UPDATE:
        u = tl.load(update + columns, mask=known, other=0.0).to(tl.float32)
        if GATE:
            u *= tl.load(gate + columns, mask=known, other=0.0).to(tl.float32)
        rounded = (v + u).to(total.dtype.element_ty)
        tl.store(total + columns, rounded, mask=known)
        v = rounded.to(tl.float32)
    return v


@triton.jit
def normed(v, w, a, b, dim, eps):
    """Both pieces less their mean, over their spread; nothing beyond the row's end."""
    mean = (tl.sum(v, axis=0) + tl.sum(w, axis=0)) / dim
    v, w = tl.where(a < dim, v - mean, 0.0), tl.where(b < dim, w - mean, 0.0)
    # One division a row, not one a number.
    spread = 1.0 / tl.sqrt((tl.sum(v * v, axis=0) + tl.sum(w * w, axis=0)) / dim + eps)
    return v * spread, w * spread


@triton.jit
def vector(base, columns, dim, other):
    """Some columns of what all rows of a batch share. Ask for it before the row's sums, whose results a
    program waits for: then it has come when they are there."""
    return tl.load(base + columns, mask=columns < dim, other=other).to(tl.float32)


@triton.jit
def as_code(x):
    """x as an int8 in -127 .. 127: the low byte of the sum above, which costs no conversion of its own."""
    x = tl.minimum(tl.maximum(x, -127.0), 127.0)
    return (x + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
