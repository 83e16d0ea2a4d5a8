"""From 16-bit rows to int8 codes in one read, with LayerNorm, smoothing and low-rank projection on the way.

The first of SVDQuant's two fused kernels (svdquant §2.9, K1), for the 8-bit activations of format H8:
x' = modulate(LN(x)) or x;  down = x' L_downᵀ (unquantized);  x̂ = x' / λ;  s = max|x̂| / 127;
codes = round(x̂ / s).
L_down acts on x', not on x̂, as the published checkpoints store it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """int8 codes, one fp32 scale a row, and the rows' low-rank projection (fp32) where one was asked for."""

    codes: Int8[Tensor, "rows dim"]
    scale: Float[Tensor, " rows"]
    projected: Float[Tensor, "rows rank"] | None


def quantize_rows(
    rows: Float[Tensor, "rows dim"],
    smooth: Float[Tensor, " dim"] | None = None,
    down: Float[Tensor, "rank dim"] | None = None,
    shift: Float[Tensor, "batch dim"] | None = None,
    scale: Float[Tensor, "batch dim"] | None = None,
    eps: float = 1e-6,
) -> QuantizedRows:
    """With `shift` and `scale` the rows (batch · tokens, in order) are first normalised and modulated."""
    codes, row_scale, projected = torch.ops.fewer.quantize_rows(rows, smooth, down, shift, scale, eps)
    return QuantizedRows(codes, row_scale, projected if down is not None else None)


@torch.library.custom_op("fewer::quantize_rows", mutates_args=(), device_types="cpu")
def _quantize_rows(
    rows: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return reference_quantize_rows(rows, smooth, down, shift, scale, eps)


def reference_quantize_rows(
    rows: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch in fp32: the oracle."""
    x = rows.float()
    if shift is not None and scale is not None:
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
        tokens = rows.shape[0] // max(shift.shape[0], 1)
        x = x * (1 + scale.float()).repeat_interleave(tokens, 0) + shift.float().repeat_interleave(tokens, 0)
    projected = x @ down.float().T if down is not None else rows.new_empty((0, 0), dtype=torch.float32)
    if smooth is not None:
        x = x / smooth.float()
    row_scale = x.abs().amax(dim=1) / 127 if x.shape[1] else x.new_zeros(x.shape[0])
    codes = (x / torch.where(row_scale > 0, row_scale, 1.0)[:, None]).round().clamp(-127, 127).to(torch.int8)
    return codes, row_scale, projected


@_quantize_rows.register_fake
def _(
    rows: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    count = rows.shape[0]
    rank = (count, down.shape[0]) if down is not None else (0, 0)
    return (
        rows.new_empty(rows.shape, dtype=torch.int8),
        rows.new_empty((count,), dtype=torch.float32),
        rows.new_empty(rank, dtype=torch.float32),
    )


@_quantize_rows.register_kernel("cuda")
def _(
    rows: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from fewer.kernels.triton.quantize import launch_quantize_rows

    return launch_quantize_rows(rows, smooth, down, shift, scale, eps)
