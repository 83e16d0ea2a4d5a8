"""Norms with what follows them: LayerNorm + modulation (Sana), RMSNorm + activation + residual (DC-AE)."""

from typing import Literal

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


@torch.library.custom_op("fewer::modulated_norm", mutates_args=(), device_types="cpu")
def _modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return reference_modulated_norm(tokens, shift, scale, eps)


@torch.library.custom_op("fewer::rms_norm_add", mutates_args=(), device_types="cpu")
def _rms_norm_add(
    features: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, activation: str, eps: float
) -> Tensor:
    return reference_rms_norm_add(features, weight, bias, residual, activation, eps)


def reference_modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Plain torch: the oracle."""
    wide = torch.promote_types(tokens.dtype, torch.float32)
    normed = torch.nn.functional.layer_norm(tokens.to(wide), tokens.shape[-1:], eps=eps)
    return (normed * (1 + scale.to(wide))[:, None] + shift.to(wide)[:, None]).to(tokens.dtype)


def reference_rms_norm_add(
    features: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, activation: str, eps: float
) -> Tensor:
    """Plain torch: the oracle."""
    wide = torch.promote_types(features.dtype, torch.float32)
    x = features.to(wide)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(wide) + bias.to(wide)
    x = {"none": lambda v: v, "silu": torch.nn.functional.silu, "relu": torch.relu}[activation](x)
    return (x if residual is None else x + residual.to(wide)).to(features.dtype)


@_modulated_norm.register_fake
def _(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return tokens.new_empty(tokens.shape)


@_rms_norm_add.register_fake
def _(
    features: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, activation: str, eps: float
) -> Tensor:
    return features.new_empty(features.shape)


@_modulated_norm.register_kernel("cuda")
def _(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    from fewer.kernels.triton.norms import launch_modulated_norm

    return launch_modulated_norm(tokens, shift, scale, eps)


@_rms_norm_add.register_kernel("cuda")
def _(
    features: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, activation: str, eps: float
) -> Tensor:
    from fewer.kernels.triton.norms import launch_rms_norm_add

    return launch_rms_norm_add(features, weight, bias, residual, activation, eps)
