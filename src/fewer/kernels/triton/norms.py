"""One program per row (or few rows): the row is read once, kept in registers, written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.chain import chained, follow
from fewer.kernels.triton.gates import silu
from fewer.kernels.triton.rows import normed, pieces, summed, vector

ACTIVATIONS = {"none": 0, "silu": 1, "relu": 2}


@triton.jit
def _modulated_norm_kernel(
    x, shift, scale, out, tokens, dim, eps, shift_b, scale_b,
    FIRST: tl.constexpr, SECOND: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    follow(CHAIN)
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    x, out, scale, shift = x + row * dim, out + row * dim, scale + batch * scale_b, shift + batch * shift_b
    a, b = tl.arange(0, FIRST), FIRST + tl.arange(0, SECOND)
    v, w = vector(x, a, dim, 0.0), vector(x, b, dim, 0.0)
    left, right = vector(scale, a, dim, 0.0), vector(scale, b, dim, 0.0)
    left_shift, right_shift = vector(shift, a, dim, 0.0), vector(shift, b, dim, 0.0)
    v, w = normed(v, w, a, b, dim, eps)
    v, w = v * (1.0 + left) + left_shift, w * (1.0 + right) + right_shift
    tl.store(out + a, v.to(out.dtype.element_ty), mask=a < dim)
    tl.store(out + b, w.to(out.dtype.element_ty), mask=b < dim)


@triton.jit
def _gated_add_kernel(
    x, update, gate, shift, scale, total, out, tokens, dim, eps, gate_b, shift_b, scale_b,
    FIRST: tl.constexpr, SECOND: tl.constexpr, GATE: tl.constexpr, NORM: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    follow(CHAIN)
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    x, update, total, gate = x + row * dim, update + row * dim, total + row * dim, gate + batch * gate_b
    a, b = tl.arange(0, FIRST), FIRST + tl.arange(0, SECOND)
    if NORM:
        out, scale, shift = out + row * dim, scale + batch * scale_b, shift + batch * shift_b
        left, right = vector(scale, a, dim, 0.0), vector(scale, b, dim, 0.0)
        left_shift, right_shift = vector(shift, a, dim, 0.0), vector(shift, b, dim, 0.0)
    v = summed(x, update, gate, total, a, dim, True, GATE)
    w = summed(x, update, gate, total, b, dim, True, GATE)
    if NORM:
        v, w = normed(v, w, a, b, dim, eps)
        v, w = v * (1.0 + left) + left_shift, w * (1.0 + right) + right_shift
        tl.store(out + a, v.to(out.dtype.element_ty), mask=a < dim)
        tl.store(out + b, w.to(out.dtype.element_ty), mask=b < dim)


@triton.jit
def _rms_norm_add_kernel(
    x, weight, bias, residual, out, rows, channels, eps,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (columns < channels)[None, :]
    where = row[:, None] * channels + columns[None, :]
    v = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
    v = v * (1.0 / tl.sqrt(tl.sum(v * v, axis=1) / channels + eps))[:, None]
    w = tl.load(weight + columns, mask=columns < channels, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=columns < channels, other=0.0).to(tl.float32)
    v = v * w[None, :] + b[None, :]
    if ACTIVATION == 1:
        v = silu(v, FAST)
    elif ACTIVATION == 2:
        v = tl.maximum(v, 0.0)
    if RESIDUAL:
        v += tl.load(residual + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + where, v.to(out.dtype.element_ty), mask=inside)


def launch_modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """(batch, tokens, dim), (batch, dim), (batch, dim) -> (batch, tokens, dim)."""
    batch, length, dim = tokens.shape
    tokens, shift, scale = tokens.contiguous(), _rows(shift), _rows(scale)
    out = torch.empty_like(tokens)
    if tokens.numel():
        _modulated_norm_kernel[(batch * length,)](
            tokens, shift, scale, out, length, dim, eps, shift.stride(0), scale.stride(0),
            **pieces(dim), **chained(tokens.device),
        )  # fmt: skip
    return out


def launch_gated_add(rows: Tensor, update: Tensor, gate: Tensor | None) -> Tensor:
    """(rows, dim), the same, (batch, dim) -> (rows, dim)."""
    return _gated_add(rows, update, gate, None, None, 0.0)[0]


def launch_gated_add_norm(
    rows: Tensor, update: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `reference_gated_add_norm`."""
    return _gated_add(rows, update, gate, shift, scale, eps)


def _gated_add(
    rows: Tensor, update: Tensor, gate: Tensor | None, shift: Tensor | None, scale: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    rows, update = rows.contiguous(), update.contiguous()
    count, dim = rows.shape
    total = torch.empty_like(rows)
    normed = torch.empty_like(rows) if shift is not None else total
    if not rows.numel():
        return total, normed
    # All vectors of a batch have the same number of rows; what is absent is never read.
    vectors = [rows[:1] if vector is None else _rows(vector) for vector in (gate, shift, scale)]
    batch = max(1 if vector is None else vector.shape[0] for vector in (gate, shift, scale))
    _gated_add_kernel[(count,)](
        rows, update, *vectors, total, normed, count // batch, dim, eps,
        *(vector.stride(0) for vector in vectors),
        GATE=gate is not None, NORM=shift is not None, **pieces(dim), **chained(rows.device),
    )  # fmt: skip
    return total, normed


def launch_rms_norm_add(
    features: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, activation: str, eps: float
) -> Tensor:
    """(..., channels) with contiguous channels -> the same shape."""
    features = features.contiguous()
    out = torch.empty_like(features)
    channels = features.shape[-1]
    rows = features.numel() // max(channels, 1)
    if rows:
        block = triton.next_power_of_2(channels)
        # Narrow rows share a program, so that every program moves about 8 KiB.
        rows_each = max(1, min(16, 2048 // block))
        other = features if residual is None else residual.contiguous()
        _rms_norm_add_kernel[(triton.cdiv(rows, rows_each),)](
            features, weight, bias, other, out, rows, channels, eps,
            BLOCK=block, ROWS=rows_each, ACTIVATION=ACTIVATIONS[activation], RESIDUAL=residual is not None,
            FAST=features.is_cuda and features.dtype.itemsize == 2,
        )  # fmt: skip
    return out


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
