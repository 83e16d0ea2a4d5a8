"""DC-AE's neighbourhood aggregation: depthwise k×k, then 1×1 within groups of channels, channels last."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def aggregate(
    features: Float[Tensor, "batch height width channels"],
    depthwise: Float[Tensor, "channels side side"],
    pointwise: Float[Tensor, "channels group"],
) -> Float[Tensor, "batch height width channels"]:
    """Zero-padded depthwise convolution of odd `side`, then each group's own square matrix; no biases.

    The first result is rounded to the features' dtype, as two layers one after the other would.
    """
    return torch.ops.fewer.aggregate(features, depthwise, pointwise)


def reference_aggregate(features: Tensor, depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """Plain torch: the oracle."""
    channels, side = depthwise.shape[:2]
    x = torch.nn.functional.conv2d(
        features.permute(0, 3, 1, 2), depthwise[:, None], padding=side // 2, groups=channels
    )
    groups = channels // pointwise.shape[1]
    x = torch.nn.functional.conv2d(x, pointwise[:, :, None, None], groups=groups)
    return x.permute(0, 2, 3, 1).contiguous()


_operator = torch.library.custom_op(
    "fewer::aggregate", reference_aggregate, mutates_args=(), device_types="cpu"
)


@_operator.register_fake
def _(features: Tensor, *weights: Tensor) -> Tensor:
    return features.new_empty(features.shape)


@_operator.register_kernel("cuda")
def _(features: Tensor, *weights: Any) -> Tensor:
    if features.dtype == torch.float64:
        return reference_aggregate(features, *weights)
    from fewer.kernels.triton.aggregate import launch_aggregate

    return launch_aggregate(features, *weights)
