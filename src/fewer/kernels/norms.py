"""Norms with what comes before and after: gated sum + LayerNorm + modulation, RMSNorm + activation + sum."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Activation = Literal["none", "silu", "relu"]


def modulated_norm(
    tokens: Float[Tensor, "batch tokens dim"],
    shift: Float[Tensor, "batch dim"],
    scale: Float[Tensor, "batch dim"],
    eps: float = 1e-6,
) -> Float[Tensor, "batch tokens dim"]:
    """LayerNorm without weights, times (1 + scale), plus shift; statistics in fp32."""
    return torch.ops.fewer.modulated_norm(tokens, shift, scale, eps)


def rms_norm_add(
    features: Float[Tensor, "... channels"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    residual: Float[Tensor, "... channels"] | None = None,
    activation: Activation = "none",
    eps: float = 1e-5,
) -> Float[Tensor, "... channels"]:
    """activation(RMSNorm(features)·weight + bias) + residual, over the last axis; DC-AE §3.1."""
    return torch.ops.fewer.rms_norm_add(features, weight, bias, residual, activation, eps)


def gated_add(
    rows: Float[Tensor, "rows dim"],
    update: Float[Tensor, "rows dim"],
    gate: Float[Tensor, "batch dim"] | None = None,
) -> Float[Tensor, "rows dim"]:
    """rows + gate · update, in fp32, rounded once; each row of `gate` serves rows / batch rows."""
    return torch.ops.fewer.gated_add(rows, update, gate)


def gated_add_norm(
    rows: Float[Tensor, "rows dim"],
    update: Float[Tensor, "rows dim"],
    gate: Float[Tensor, "batch dim"] | None,
    shift: Float[Tensor, "batch dim"],
    scale: Float[Tensor, "batch dim"],
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows dim"]]:
    """(sum, modulated_norm(sum)) for the sum of `gated_add`, in one pass."""
    return torch.ops.fewer.gated_add_norm(rows, update, gate, shift, scale, eps)


def summed_and_modulated(
    rows: Float[Tensor, "rows dim"],
    update: Float[Tensor, "rows dim"] | None,
    gate: Float[Tensor, "batch dim"] | None,
    shift: Float[Tensor, "batch dim"] | None,
    scale: Float[Tensor, "batch dim"] | None,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows dim"]]:
    """(total, read): rows + gate · update where there is an update, and its modulated norm where asked."""
    normed = shift is not None and scale is not None
    if update is not None and normed:
        return gated_add_norm(rows, update, gate, shift, scale, eps)
    total = rows if update is None else gated_add(rows, update, gate)
    if not normed:
        return total, total
    batched = total.reshape(shift.shape[0], -1, total.shape[1])
    return total, modulated_norm(batched, shift, scale, eps).flatten(0, 1)


def reference_modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Plain torch: the oracle."""
    wide = torch.promote_types(tokens.dtype, torch.float32)
    normed = torch.nn.functional.layer_norm(tokens.to(wide), tokens.shape[-1:], eps=eps)
    return (normed * (1 + scale.to(wide))[:, None] + shift.to(wide)[:, None]).to(tokens.dtype)


def reference_gated_add(rows: Tensor, update: Tensor, gate: Tensor | None) -> Tensor:
    """Plain torch: the oracle."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    other = update.to(wide)
    if gate is not None:
        other = other * gate.to(wide).repeat_interleave(rows.shape[0] // max(gate.shape[0], 1), 0)
    return (rows.to(wide) + other).to(rows.dtype)


def reference_gated_add_norm(
    rows: Tensor, update: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Plain torch: the oracle. The norm reads the rounded sum, as two passes would."""
    total = reference_gated_add(rows, update, gate)
    tokens = total.reshape(shift.shape[0], -1, total.shape[1])
    return total, reference_modulated_norm(tokens, shift, scale, eps).reshape(total.shape)


def reference_rms_norm_add(
    features: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, activation: str, eps: float
) -> Tensor:
    """Plain torch: the oracle."""
    wide = torch.promote_types(features.dtype, torch.float32)
    x = features.to(wide)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(wide) + bias.to(wide)
    x = {"none": lambda v: v, "silu": torch.nn.functional.silu, "relu": torch.relu}[activation](x)
    return (x if residual is None else x + residual.to(wide)).to(features.dtype)


def _register(name: str, reference: Callable[..., Any]) -> torch.library.CustomOpDef:
    """The operator `fewer::name`: the reference on a CPU, the launcher of the same name on a GPU."""
    operator = torch.library.custom_op(f"fewer::{name}", reference, mutates_args=(), device_types="cpu")

    @operator.register_kernel("cuda")
    def _(*arguments: Any) -> Any:
        return on_gpu(name, reference, *arguments)

    return operator


def on_gpu(name: str, reference: Callable[..., Any], *arguments: Any) -> Any:
    """What the launcher `name` makes; of float64 what the reference makes, since kernels compute in fp32."""
    if arguments[0].dtype == torch.float64:
        return reference(*arguments)
    from fewer.kernels.triton import norms

    return getattr(norms, f"launch_{name}")(*arguments)


@_register("modulated_norm", reference_modulated_norm).register_fake
def _(tokens: Tensor, *others: Any) -> Tensor:
    return tokens.new_empty(tokens.shape)


@_register("gated_add", reference_gated_add).register_fake
def _(rows: Tensor, *others: Any) -> Tensor:
    return rows.new_empty(rows.shape)


@_register("gated_add_norm", reference_gated_add_norm).register_fake
def _(rows: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), rows.new_empty(rows.shape)


@_register("rms_norm_add", reference_rms_norm_add).register_fake
def _(features: Tensor, *others: Any) -> Tensor:
    return features.new_empty(features.shape)
