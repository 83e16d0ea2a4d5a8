"""From 16-bit rows to int8 codes: gated sum, LayerNorm, smoothing, low-rank projection, rounding in one go.

The first of SVDQuant's two fused kernels (svdquant §2.9, K1), for the 8-bit activations of format H8:
r = rows + gate · update (where there is one);  x = modulate(LN(r)) or r;
down = x L_downᵀ (unquantized);  x̂ = x / λ;  s = max|x̂| / 127;  codes = round(x̂ / s).
L_down acts on x, not on x̂, as the published checkpoints store it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from fewer.kernels.norms import reference_gated_add


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """What a product reads."""

    codes: Int8[Tensor, "rows dim"]
    scale: Float[Tensor, " rows"]
    """One fp32 number a row."""
    projected: Float[Tensor, "rows rank"] | None
    """The rows' low-rank projection, in the dtype of `down`, where one was asked for."""
    total: Float[Tensor, "rows dim"]
    """The rows after the sum; the very tensor that was given where there was none."""


def quantize_rows(
    rows: Float[Tensor, "rows dim"],
    smooth: Float[Tensor, " dim"] | None = None,
    down: Float[Tensor, "rank dim"] | None = None,
    shift: Float[Tensor, "batch dim"] | None = None,
    scale: Float[Tensor, "batch dim"] | None = None,
    eps: float = 1e-6,
    update: Float[Tensor, "rows dim"] | None = None,
    gate: Float[Tensor, "batch dim"] | None = None,
    inverse: Float[Tensor, " dim"] | None = None,
) -> QuantizedRows:
    """With `update`, rows + gate · update first; with `shift` and `scale`, the rows are then normalised and
    modulated. Batches follow one another in the rows, each with its own vectors. `inverse` is 1 / λ in
    fp32 for kernels to multiply by, where somebody has it ready."""
    codes, row_scale, projected, total = torch.ops.fewer.quantize_rows(
        rows, smooth, down, shift, scale, eps, update, gate, inverse
    )
    return QuantizedRows(
        codes, row_scale, projected if down is not None else None, rows if update is None else total
    )


def reference_quantize_rows(
    rows: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain torch in fp32: the oracle. What was not asked for is empty."""
    total = rows.new_empty((0, 0))
    if update is not None:
        rows = total = reference_gated_add(rows, update, gate)
    x = rows.float()
    if shift is not None and scale is not None:
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
        tokens = rows.shape[0] // max(shift.shape[0], 1)
        x = x * (1 + scale.float()).repeat_interleave(tokens, 0) + shift.float().repeat_interleave(tokens, 0)
    projected = rows.new_empty((0, 0), dtype=torch.float32)
    if down is not None:
        projected = (x @ down.float().T).to(down.dtype)
    if smooth is not None:
        x = x / smooth.float()
    row_scale = x.abs().amax(dim=1) / 127 if x.shape[1] else x.new_zeros(x.shape[0])
    codes = (x / torch.where(row_scale > 0, row_scale, 1.0)[:, None]).round().clamp(-127, 127).to(torch.int8)
    return codes, row_scale, projected, total


_operator = torch.library.custom_op(
    "fewer::quantize_rows", reference_quantize_rows, mutates_args=(), device_types="cpu"
)


@_operator.register_fake
def _(
    rows: Tensor, smooth: Any, down: Tensor | None, shift: Any, scale: Any, eps: float,
    update: Tensor | None = None, gate: Any = None, inverse: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    count = rows.shape[0]
    rank, dtype = ((0, 0), torch.float32) if down is None else ((count, down.shape[0]), down.dtype)
    return (
        rows.new_empty(rows.shape, dtype=torch.int8),
        rows.new_empty((count,), dtype=torch.float32),
        rows.new_empty(rank, dtype=dtype),
        rows.new_empty((0, 0) if update is None else rows.shape),
    )


@_operator.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fewer.kernels.triton.quantize import launch_quantize_rows

    return launch_quantize_rows(*arguments)
