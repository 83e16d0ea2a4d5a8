"""What kernels of linear attention have in common, on one GPU or on several: summing a state, reading it."""

import triton
import triton.language as tl


@triton.jit
def sum_tokens(
    key, value, begin, end, tokens, key_n, value_n, known,
    LANES: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The sums of value · relu(key)ᵀ and of relu(key) over the tokens from `begin` up to `end`."""
    SUM: tl.constexpr = tl.float64 if EXACT else tl.float32  # pyright: ignore
    total = tl.zeros((LANES, LANES), dtype=SUM)
    ones = tl.zeros((LANES,), dtype=SUM)
    for start in range(begin, end, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = (rows < tokens)[:, None] & known[None, :]
        rows = rows.to(tl.int64)[:, None]
        k = tl.load(key + rows * key_n, mask=inside, other=0.0)
        v = tl.load(value + rows * value_n, mask=inside, other=0.0)
        if WIDE:
            k, v = k.to(tl.float32), v.to(tl.float32)
        k = tl.maximum(k.to(tl.float32), 0.0).to(k.dtype)
        if EXACT:
            total += tl.dot(tl.trans(v), k, input_precision="ieee").to(SUM)
        else:
            total = tl.dot(tl.trans(v), k, acc=total, input_precision="ieee")
        ones += tl.sum(k.to(tl.float32), axis=0).to(SUM)
    return total, ones


@triton.jit
def add_states(
    base, parts, part_stride, columns, known, HEAD: tl.constexpr, DIM: tl.constexpr, EXACT: tl.constexpr
):
    """A head's partial states, added up in a fixed order: the same input gives the same bits on every run."""
    square = known[:, None] & known[None, :]
    SUM: tl.constexpr = tl.float64 if EXACT else tl.float32  # pyright: ignore
    matrix = tl.zeros((DIM, DIM), dtype=SUM)
    ones = tl.zeros((DIM,), dtype=SUM)
    for _ in range(parts):
        matrix += tl.load(base + columns[:, None] * HEAD + columns[None, :], mask=square, other=0.0)
        ones += tl.load(base + HEAD * HEAD + columns, mask=known, other=0.0)
        base += part_stride
    return matrix.to(tl.float32), ones.to(tl.float32)


@triton.jit
def read_state(q, matrix, ones, eps, HALF: tl.constexpr, SPLIT: tl.constexpr):
    """What queries get: relu(q) · matrix, divided by relu(q) · ones; `HALF` keeps it within fp16."""
    wide = tl.maximum(q.to(tl.float32), 0.0)
    if SPLIT:
        # 16-bit tensor cores with nearly fp32's precision: the state as the sum of two 16-bit numbers.
        q = wide.to(q.dtype)
        high = matrix.to(q.dtype)
        top = tl.dot(q, tl.trans(high))
        top = tl.dot(q, tl.trans((matrix - high.to(tl.float32)).to(q.dtype)), acc=top)
    else:
        top = tl.dot(wide, tl.trans(matrix), input_precision="ieee")
    below = tl.sum(wide * ones[None, :], axis=1) + eps
    result = top * (1.0 / below)[:, None]
    if HALF:
        result = tl.minimum(tl.maximum(result, -65504.0), 65504.0)
    return result
