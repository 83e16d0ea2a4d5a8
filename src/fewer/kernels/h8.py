"""Format H8: 4-bit codes times an integer group scale, int8 activations (svdquant §2.10).

A weight is w = S_n · t_{n,g} · q with q in -7..7 and t in 1..18, so w/S_n is an int8 number and the whole
product runs as int8 × int8 → int32, exactly. Codes are stored as q + 8, two a byte: within a group of 64,
byte i holds code i in its low and code i + 32 in its high nibble ("fewer-h8-v1").
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor

GROUP = 64

Activation = Literal["none", "silu", "gelu"]


def pack_h8(codes: Int8[Tensor, "rows dim"]) -> UInt8[Tensor, "rows half_dim"]:
    """Codes -7..7 to nibbles. `dim` must be a multiple of 64 (pad with zero codes)."""
    rows, dim = codes.shape
    if dim % GROUP:
        raise ValueError(f"{dim} columns are no multiple of {GROUP}; pad with zero codes first")
    stored = (codes + 8).view(rows, dim // GROUP, 2, 32).to(torch.uint8)
    return (stored[:, :, 0] | (stored[:, :, 1] << 4)).reshape(rows, dim // 2)


def unpack_h8(packed: UInt8[Tensor, "rows half_dim"]) -> Int8[Tensor, "rows dim"]:
    """Inverse of `pack_h8`."""
    rows, half = packed.shape
    grouped = packed.view(rows, half // 32, 32)
    both = torch.stack([grouped & 15, grouped >> 4], dim=2).to(torch.int8) - 8
    return both.reshape(rows, half * 2)


def expand_h8(
    packed: UInt8[Tensor, "rows half_dim"],
    group_scale: UInt8[Tensor, "rows groups"],
    out: Int8[Tensor, "rows dim"] | None = None,
) -> Int8[Tensor, "rows dim"]:
    """int8 weights q·t, into `out` where given: one scratch buffer serves all layers, and stays in the L2."""
    if out is None:
        out = torch.empty((packed.shape[0], packed.shape[1] * 2), dtype=torch.int8, device=packed.device)
    torch.ops.fewer.expand_h8(packed, group_scale, out)
    return out


def decode_h8(
    packed: UInt8[Tensor, "rows half_dim"],
    group_scale: UInt8[Tensor, "rows groups"],
    channel_scale: Float[Tensor, " rows"],
    smooth: Float[Tensor, " dim"] | None,
    down: Float[Tensor, "rank dim"] | None,
    up: Float[Tensor, "rows rank"] | None,
    out: Shaped[Tensor, "rows dim"],
    step: Float[Tensor, " rows"] | None = None,
) -> Shaped[Tensor, "rows dim"]:
    """The weight that the whole layer stands for, S · t · q / λ + up down, into `out`.

    With `step` it is rounded to whole multiples of its row's step, which `out` then holds as int8.
    """
    torch.ops.fewer.decode_h8(packed, group_scale, channel_scale, smooth, down, up, out, step)
    return out


def int8_linear(
    codes: Int8[Tensor, "rows dim"],
    row_scale: Float[Tensor, " rows"],
    weight: Int8[Tensor, "outputs dim"],
    column_scale: Float[Tensor, " outputs"],
    *,
    bias: Float[Tensor, " outputs"] | None = None,
    projected: Float[Tensor, "rows rank"] | None = None,
    up: Float[Tensor, "outputs rank"] | None = None,
    activation: Activation = "none",
    gate: Float[Tensor, "batch outputs"] | None = None,
    residual: Float[Tensor, "rows outputs"] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    out: Float[Tensor, "rows outputs"] | None = None,
) -> Float[Tensor, "rows outputs"]:
    """residual + gate · activation(row_scale · column_scale · (codes weightᵀ) + projected upᵀ + bias).

    Everything after the int32 accumulator happens in fp32 and is rounded once (svdquant §2.9, K2). `out`,
    some rows of a contiguous tensor, takes the result instead of a new one, in its own dtype.
    """
    arguments = (codes, row_scale, weight, column_scale, bias, projected, up, activation, gate, residual)
    if out is None:
        return torch.ops.fewer.int8_linear(*arguments, dtype)
    if not out.is_contiguous():
        raise ValueError("out must be contiguous: whole rows of a contiguous tensor")
    torch.ops.fewer.int8_linear_into(*arguments, out)
    return out


def reference_expand_h8(packed: Tensor, group_scale: Tensor, out: Tensor) -> None:
    """Plain torch: the oracle."""
    rows, half = packed.shape
    codes = unpack_h8(packed).view(rows, half // 32, GROUP)
    out.copy_((codes.int() * group_scale[:, :, None].int()).to(torch.int8).view(rows, half * 2))


def reference_decode_h8(
    packed: Tensor,
    group_scale: Tensor,
    channel_scale: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    out: Tensor,
    step: Tensor | None = None,
) -> None:
    """Plain torch: the oracle."""
    rows, half = packed.shape
    codes = unpack_h8(packed).view(rows, half // 32, GROUP).float() * group_scale[:, :, None].float()
    weight = codes.view(rows, half * 2) * channel_scale.float()[:, None]
    weight = weight if smooth is None else weight / smooth.float()
    if down is not None and up is not None:
        weight = weight + up.float() @ down.float()
    if step is not None:
        weight = (weight / torch.where(step > 0, step, 1.0)[:, None]).round().clamp(-127, 127)
    out.copy_(weight.to(out.dtype))


def accumulate_int8(codes: Tensor, weight: Tensor) -> Tensor:
    """The exact integer product (rows × outputs) as int32, on any device.

    float64 holds every |sum| < 2**53, far above the int32 range, and its products are fast everywhere.
    """
    return (codes.double() @ weight.double().T).to(torch.int32)


def reference_int8_linear(
    codes: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor,
    bias: Tensor | None,
    projected: Tensor | None,
    up: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Plain torch: the oracle."""
    y = accumulate_int8(codes, weight).float() * row_scale[:, None] * column_scale.float()
    if projected is not None and up is not None:
        y = y + projected.to(up.dtype).float() @ up.float().T
    if bias is not None:
        y = y + bias.float()
    y = _ACTIVATIONS[activation](y)
    if gate is not None:
        y = y * gate.float().repeat_interleave(y.shape[0] // max(gate.shape[0], 1), 0)
    if residual is not None:
        y = y + residual.float()
    return y.to(dtype)


def reference_int8_linear_into(
    codes: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor,
    bias: Tensor | None,
    projected: Tensor | None,
    up: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    """The same into `out`."""
    out.copy_(
        reference_int8_linear(
            codes, row_scale, weight, column_scale, bias, projected, up, activation, gate, residual, out.dtype
        )
    )


_ACTIVATIONS = {
    "none": lambda y: y,
    "silu": torch.nn.functional.silu,
    "gelu": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
}
_expand = torch.library.custom_op(
    "fewer::expand_h8", reference_expand_h8, mutates_args=("out",), device_types="cpu"
)
_decode = torch.library.custom_op(
    "fewer::decode_h8", reference_decode_h8, mutates_args=("out",), device_types="cpu"
)
_product = torch.library.custom_op(
    "fewer::int8_linear", reference_int8_linear, mutates_args=(), device_types="cpu"
)
_product_into = torch.library.custom_op(
    "fewer::int8_linear_into", reference_int8_linear_into, mutates_args=("out",), device_types="cpu"
)


@_expand.register_fake
def _(*tensors: Tensor) -> None:
    return None


@_decode.register_fake
def _(*tensors: Tensor | None) -> None:
    return None


@_decode.register_kernel("cuda")
def _(*tensors: Any) -> None:
    from fewer.kernels.triton.h8 import launch_decode_h8

    launch_decode_h8(*tensors)


@_product.register_fake
def _(codes: Tensor, row_scale: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return codes.new_empty((codes.shape[0], weight.shape[0]), dtype=others[-1])


@_expand.register_kernel("cuda")
def _(*tensors: Tensor) -> None:
    from fewer.kernels.triton.h8 import launch_expand_h8

    launch_expand_h8(*tensors)


@_product.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from fewer.kernels.triton.h8 import launch_int8_linear

    return launch_int8_linear(*arguments)


@_product_into.register_fake
def _(*arguments: Any) -> None:
    return None


@_product_into.register_kernel("cuda")
def _(*arguments: Any) -> None:
    from fewer.kernels.triton.h8 import launch_int8_linear

    *others, out = arguments
    launch_int8_linear(*others, out.dtype, out=out)
