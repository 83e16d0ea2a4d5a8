"""The middle of the Mix-FFN for training: SiLU, depthwise 3×3 and gate in one pass, its gradients in another.

As `depthwise_gated`, which draws, but with a backward pass: cuDNN's depthwise gradients take several times as
long as their bytes, and the gate's own gradients would be written and read once more.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, silu
from torch.nn.grad import conv2d_input, conv2d_weight

from fewer.kernels.depthwise import reference_depthwise_gated

MOST_PIXELS = 1024
WIDEST = 16
"""Pixels of a line that the quicker of two kernels for the gradients takes."""


def gated_depthwise(
    features: Float[Tensor, "batch height width two_channels"],
    weight: Float[Tensor, "two_channels 1 3 3"],
    bias: Float[Tensor, " two_channels"],
    pre_silu: bool = False,
) -> Float[Tensor, "batch height width channels"]:
    """value · SiLU(gate) of the zero-padded convolution; the first half of the channels is the value.

    With `pre_silu` the convolution sees SiLU(features), which are then never kept.
    """
    return torch.ops.fewer.gated_depthwise(features, weight, bias, pre_silu)


@torch.library.custom_op("fewer::gated_depthwise", mutates_args=(), device_types="cpu")
def _gated_depthwise(features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool) -> Tensor:
    return reference_depthwise_gated(features, weight[:, 0], bias, pre_silu)


@torch.library.custom_op("fewer::gated_depthwise_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return reference_backward(grad, features, weight, bias, pre_silu)


def gated_depthwise_backward(
    grad: Float[Tensor, "batch height width channels"],
    features: Float[Tensor, "batch height width two_channels"],
    weight: Float[Tensor, "two_channels 1 3 3"],
    bias: Float[Tensor, " two_channels"],
    pre_silu: bool = False,
) -> tuple[
    Float[Tensor, "batch height width two_channels"],
    Float[Tensor, "two_channels 1 3 3"],
    Float[Tensor, " two_channels"],
    Float[Tensor, " two_channels"],
]:
    """Gradients of features, weight and bias, and the first summed over its pixels; for whoever calls it."""
    if features.is_cuda and features.dtype != torch.float64 and 0 < features.shape[2] <= WIDEST:
        from fewer.kernels.triton.gated_depthwise_rows import launch_rows_backward

        return launch_rows_backward(grad, features, weight, bias, pre_silu)
    found = torch.ops.fewer.gated_depthwise_backward(grad, features, weight, bias, pre_silu)
    wide = torch.promote_types(features.dtype, torch.float32)
    return *found, found[0].sum(dim=(0, 1, 2), dtype=wide)


def reference_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, weight and bias in plain torch: the oracle."""
    wide = torch.promote_types(features.dtype, torch.float32)
    raw, taps = features.to(wide).permute(0, 3, 1, 2), weight.to(wide)
    x = silu(raw) if pre_silu else raw
    value, gate = conv2d(x, taps, bias.to(wide), padding=1, groups=len(bias)).chunk(2, dim=1)
    above, share = grad.to(wide).permute(0, 3, 1, 2), gate.sigmoid()
    middle = torch.cat([above * gate * share, above * value * share * (1 + gate * (1 - share))], dim=1)
    back = conv2d_input(x.shape, taps, middle, padding=1, groups=len(bias))
    if pre_silu:
        back = back * raw.sigmoid() * (1 + raw * (1 - raw.sigmoid()))
    of_taps = conv2d_weight(x, taps.shape, middle, padding=1, groups=len(bias))
    found = (back.permute(0, 2, 3, 1), of_taps, middle.sum(dim=(0, 2, 3)))
    kinds = (features, weight, bias)
    return tuple(part.to(kind.dtype).contiguous() for part, kind in zip(found, kinds, strict=True))  # type: ignore[return-value]


@_gated_depthwise.register_fake
def _(features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool) -> Tensor:
    batch, height, width, channels = features.shape
    return features.new_empty((batch, height, width, channels // 2))


@_backward.register_fake
def _(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(part.new_empty(part.shape) for part in (features, weight, bias))  # type: ignore[return-value]


@_gated_depthwise.register_kernel("cuda")
def _(features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool) -> Tensor:
    if features.dtype == torch.float64:  # the kernel computes in fp32
        return reference_depthwise_gated(features, weight[:, 0], bias, pre_silu)
    from fewer.kernels.triton.depthwise import launch_depthwise_gated

    return launch_depthwise_gated(features, weight[:, 0].to(features.dtype), bias, pre_silu)


@_backward.register_kernel("cuda")
def _(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if features.dtype == torch.float64 or features.shape[1] * features.shape[2] > MOST_PIXELS:
        return reference_backward(grad, features, weight, bias, pre_silu)
    if 0 < features.shape[2] <= WIDEST:
        from fewer.kernels.triton.gated_depthwise_rows import launch_rows_backward

        return launch_rows_backward(grad, features, weight, bias, pre_silu)[:3]
    from fewer.kernels.triton.gated_depthwise import launch_gated_depthwise_backward

    return launch_gated_depthwise_backward(grad, features, weight, bias, pre_silu)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.pre_silu = inputs[3]  # type: ignore[attr-defined]


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    kept = ctx.saved_tensors  # type: ignore[attr-defined]
    found = torch.ops.fewer.gated_depthwise_backward(grad, *kept, ctx.pre_silu)  # type: ignore[attr-defined]
    return *found, None


_gated_depthwise.register_autograd(_gradients, setup_context=_keep)
