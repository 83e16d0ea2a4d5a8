"""Depthwise 3×3 convolution with its own weights for every sample of the batch, channels last.

What a condition-aware network trains with: the usual trick, one grouped convolution over batch × channels
groups, is slow in cuDNN when there are thousands of them. SiLU may be fused behind it.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def depthwise_per_sample(
    features: Float[Tensor, "batch height width channels"],
    weight: Float[Tensor, "batch channels 3 3"],
    bias: Float[Tensor, " channels"] | None = None,
    silu: bool = False,
) -> Float[Tensor, "batch height width channels"]:
    """Zero-padded convolution of sample i with `weight[i]`, plus the shared bias, SiLU last if asked.

    Differentiable in features, weight and bias.
    """
    if bias is None:
        bias = features.new_zeros(features.shape[-1])
    # While training SiLU runs apart: its gradient needs its input.
    fused = silu and not torch.is_grad_enabled()
    result = torch.ops.fewer.depthwise_per_sample(features, weight, bias, fused)
    return torch.nn.functional.silu(result) if silu and not fused else result


@torch.library.custom_op("fewer::depthwise_per_sample", mutates_args=(), device_types="cpu")
def _depthwise_per_sample(features: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    return reference_depthwise_per_sample(features, weight, bias, silu)


def reference_depthwise_per_sample(features: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """Plain torch in fp32: one grouped convolution over batch × channels groups. The oracle."""
    wide = torch.promote_types(features.dtype, torch.float32)
    batch, channels = features.shape[0], features.shape[3]
    x = rearrange(features.to(wide), "b h w c -> 1 (b c) h w")
    kernels = rearrange(weight.to(wide), "b c kh kw -> (b c) 1 kh kw")
    y = torch.nn.functional.conv2d(x, kernels, padding=1, groups=batch * channels)
    y = rearrange(y, "1 (b c) h w -> b h w c", b=batch) + bias.to(wide)
    y = torch.nn.functional.silu(y) if silu else y
    return y.to(features.dtype).contiguous()


@_depthwise_per_sample.register_fake
def _(features: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    return features.new_empty(features.shape)


@_depthwise_per_sample.register_kernel("cuda")
def _(features: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    from fewer.kernels.triton.depthwise_per_sample import launch_depthwise_per_sample

    return launch_depthwise_per_sample(features, weight, bias, silu)


@torch.library.custom_op("fewer::depthwise_per_sample_gradients", mutates_args=(), device_types="cpu")
def _gradients(features: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return reference_depthwise_per_sample_gradients(features, gradient)


def reference_depthwise_per_sample_gradients(features: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of every sample's weights, (batch, channels, 3, 3), and of its bias, (batch, channels)."""
    height, width = features.shape[1:3]
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    padded = torch.nn.functional.pad(features.to(wide.dtype), (0, 0, 1, 1, 1, 1))
    taps = [
        (padded[:, dy : dy + height, dx : dx + width] * wide).sum((1, 2))
        for dy in range(3)
        for dx in range(3)
    ]
    return rearrange(torch.stack(taps, -1), "b c (kh kw) -> b c kh kw", kh=3), wide.sum((1, 2))


@_gradients.register_fake
def _(features: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels = features.shape[0], features.shape[3]
    wide = torch.promote_types(features.dtype, torch.float32)
    to_weight = features.new_empty((batch, channels, 3, 3), dtype=wide)
    return to_weight, features.new_empty((batch, channels), dtype=wide)


@_gradients.register_kernel("cuda")
def _(features: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    from fewer.kernels.triton.depthwise_per_sample import launch_depthwise_per_sample_gradients

    return launch_depthwise_per_sample_gradients(features, gradient)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    features, weight, bias, silu = inputs
    ctx.save_for_backward(features, weight)
    ctx.silu, ctx.bias_dtype = silu, bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    if ctx.silu:
        raise NotImplementedError("the fused SiLU is for inference; depthwise_per_sample() splits it off")
    features, weight = ctx.saved_tensors
    gradient = gradient.contiguous()
    nothing = weight.new_zeros(weight.shape[1])
    # The transposed convolution is the same operator with the kernel turned by half a turn.
    to_features = torch.ops.fewer.depthwise_per_sample(gradient, weight.flip(-1, -2), nothing, False)
    to_weight, to_bias = torch.ops.fewer.depthwise_per_sample_gradients(features, gradient)
    return to_features, to_weight.to(weight.dtype), to_bias.sum(0).to(ctx.bias_dtype), None


_depthwise_per_sample.register_autograd(_backward, setup_context=_setup)
