"""The middle of Sana's Mix-FFN: depthwise 3×3 convolution and gated unit in one pass, channels last."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def depthwise_gated(
    features: Float[Tensor, "batch height width two_channels"],
    weight: Float[Tensor, "two_channels 3 3"],
    bias: Float[Tensor, " two_channels"],
    pre_silu: bool = False,
) -> Float[Tensor, "batch height width channels"]:
    """value · SiLU(gate) of the zero-padded convolution; the first half of the channels is the value.

    `pre_silu` applies SiLU to the input first, where the product before has no epilogue that does.
    """
    return torch.ops.fewer.depthwise_gated(features, weight, bias, pre_silu)


@torch.library.custom_op("fewer::depthwise_gated", mutates_args=(), device_types="cpu")
def _depthwise_gated(features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool) -> Tensor:
    return reference_depthwise_gated(features, weight, bias, pre_silu)


def reference_depthwise_gated(features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool) -> Tensor:
    """Plain torch in fp32: the oracle."""
    wide = torch.promote_types(features.dtype, torch.float32)
    x = rearrange(features.to(wide), "b h w c -> b c h w")
    x = torch.nn.functional.silu(x) if pre_silu else x
    x = torch.nn.functional.conv2d(x, weight.to(wide)[:, None], bias.to(wide), padding=1, groups=x.shape[1])
    value, gate = x.chunk(2, dim=1)
    return (
        rearrange(value * torch.nn.functional.silu(gate), "b c h w -> b h w c")
        .to(features.dtype)
        .contiguous()
    )


@_depthwise_gated.register_fake
def _(features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool) -> Tensor:
    batch, height, width, channels = features.shape
    return features.new_empty((batch, height, width, channels // 2))


@_depthwise_gated.register_kernel("cuda")
def _(features: Tensor, weight: Tensor, bias: Tensor, pre_silu: bool) -> Tensor:
    if features.dtype == torch.float64:  # the kernel computes in fp32
        return reference_depthwise_gated(features, weight, bias, pre_silu)
    from fewer.kernels.triton.depthwise import launch_depthwise_gated

    return launch_depthwise_gated(features, weight, bias, pre_silu)
