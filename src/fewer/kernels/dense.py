"""A 16-bit product and its activation: a kernel that applies it, or that is faster; else cuBLAS."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Activation = Literal["none", "silu", "gelu"]


def activated_linear(
    rows: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "outputs dim"],
    bias: Float[Tensor, " outputs"] | None = None,
    activation: Activation = "none",
) -> Float[Tensor, "rows outputs"]:
    """activation(rows weightᵀ + bias)."""
    if activation == "none" and not _wide_and_short(rows, weight):
        return torch.nn.functional.linear(rows, weight, bias)
    return torch.ops.fewer.activated_linear(rows, weight, bias, activation)


def _wide_and_short(rows: Tensor, weight: Tensor) -> bool:
    """Products of which ours are faster than cuBLAS's, measured on Hopper: short sums, many outputs."""
    outputs, dim = weight.shape
    shaped = rows.is_cuda and rows.shape[0] >= 2048 and outputs >= 3072 and dim <= 1536
    trained = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    if trained or not shaped:
        return False
    from fewer.kernels.triton.hopper import fits_hopper

    return fits_hopper(rows, weight)


def reference_activated_linear(rows: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Plain torch: the oracle."""
    result = torch.nn.functional.linear(rows, weight, bias)
    if activation == "silu":
        return torch.nn.functional.silu(result)
    return torch.nn.functional.gelu(result, approximate="tanh") if activation == "gelu" else result


_operator = torch.library.custom_op(
    "fewer::activated_linear", reference_activated_linear, mutates_args=(), device_types="cpu"
)


@_operator.register_fake
def _(rows: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]))


@_operator.register_kernel("cuda")
def _(rows: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    from fewer.kernels.triton.hopper import fits_hopper, hopper_product

    if fits_hopper(rows, weight):
        return hopper_product(rows, weight, bias=bias, activation=activation)
    return reference_activated_linear(rows, weight, bias, activation)
