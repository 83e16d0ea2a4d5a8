"""A 16-bit product and its activation: cuBLAS where there is none, else a kernel that applies it."""

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
    if activation == "none":
        return torch.nn.functional.linear(rows, weight, bias)
    return torch.ops.fewer.activated_linear(rows, weight, bias, activation)


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

    if activation != "none" and fits_hopper(rows, weight):
        return hopper_product(rows, weight, bias=bias, activation=activation)
    return reference_activated_linear(rows, weight, bias, activation)
