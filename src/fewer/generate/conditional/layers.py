"""Layers whose weights may differ from sample to sample: y = (W + W_c) x + b (arXiv 2404.01143, section 3).

W and b are those of an ordinary layer, which stays inside untouched; W_c is bound before a forward pass.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from fewer.core.errors import ConfigError

Form = Literal["split", "joined", "fused"]


class ConditionAwareLayer(nn.Module):
    """A linear or convolutional layer with an addition to its weight per sample.

    `form`: "split" runs the ordinary layer and adds W_c x (never builds W + W_c for a batch, and the only
    one for quantized layers); "joined" runs (W + W_c) x at once; "fused" does that for depthwise 3x3
    convolutions with the kernel for weights per sample: what to train with on a GPU.
    """

    def __init__(self, static: nn.Module, form: Form = "split") -> None:
        super().__init__()
        self.static = static
        self.form: Form = form
        self.addition: Tensor | None = None
        """W_c of shape (batch, *weight); None leaves the layer as it was."""
        if form == "joined" and not isinstance(static, nn.Linear | nn.Conv2d):
            raise ConfigError(f"{type(static).__name__} has no plain weight to add to; use the split form")
        if form == "fused" and not is_depthwise_3x3(static):
            raise ConfigError("the fused form is for depthwise 3x3 convolutions of stride 1; use split")

    def forward(self, features: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *out"]:
        """Raises `ConfigError` when weights were generated for another number of samples."""
        addition = self.addition
        if addition is None:
            return self.static(features)
        if addition.shape[0] != features.shape[0]:
            raise ConfigError(
                f"conditions for {addition.shape[0]} samples meet a batch of {features.shape[0]}; "
                "give one condition a sample"
            )
        if not torch.is_autocast_enabled(features.device.type):
            addition = addition.to(features.dtype)
        static = self.static
        if self.form == "joined":
            assert isinstance(static, nn.Linear | nn.Conv2d)
            return _with_bias(per_sample(static, features, static.weight + addition), static)
        if self.form == "fused":
            from fewer.kernels.depthwise_per_sample import depthwise_per_sample

            image = rearrange(features, "b c h w -> b h w c").contiguous()
            assert isinstance(static, nn.Conv2d)
            weight = (static.weight + addition)[:, :, 0]
            return rearrange(depthwise_per_sample(image, weight, static.bias), "b h w c -> b c h w")
        return static(features) + per_sample(static, features, addition)


def per_sample(
    layer: nn.Module, features: Float[Tensor, "batch *rest"], weights: Float[Tensor, "batch *weight"]
) -> Float[Tensor, "batch *out"]:
    """`layer` without bias, with weights of its own for each sample: groups for convolutions, batched
    matrix products for linear layers and for patches that do not overlap."""
    if isinstance(layer, nn.Conv2d) and _is_patches(layer, features):
        p, q = layer.kernel_size
        rows = rearrange(features, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q)
        result = rows @ rearrange(weights, "b o c p q -> b (c p q) o")
        return rearrange(result, "b (h w) o -> b o h w", w=features.shape[3] // q)
    if isinstance(layer, nn.Conv2d):
        batch, groups, padding = features.shape[0], layer.groups, layer.padding
        if layer.padding_mode != "zeros":
            features = pad(features, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = 0
        joined = conv2d(
            rearrange(features, "b c h w -> 1 (b c) h w"),
            rearrange(weights, "b o i kh kw -> (b o) i kh kw"),
            stride=layer.stride,
            padding=padding,
            dilation=layer.dilation,
            groups=batch * groups,
        )
        return rearrange(joined, "1 (b c) h w -> b c h w", b=batch)
    rows = features.flatten(1, -2) if features.ndim > 2 else features[:, None]
    return (rows @ weights.transpose(1, 2)).reshape(*features.shape[:-1], weights.shape[1])


def _is_patches(layer: nn.Conv2d, features: Tensor) -> bool:
    """Whether every pixel belongs to exactly one window."""
    whole = not any(side % step for side, step in zip(features.shape[2:], layer.stride, strict=True))
    plain = layer.padding in ((0, 0), "valid") and layer.dilation == (1, 1) and layer.groups == 1
    return whole and plain and layer.kernel_size == layer.stride


def _with_bias(result: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    if layer.bias is None:
        return result
    return result + (layer.bias[:, None, None] if isinstance(layer, nn.Conv2d) else layer.bias)


def weight_shape(layer: nn.Module) -> tuple[int, ...] | None:
    """The shape of a layer's weight, also of a quantized linear one; None for other modules."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return tuple(layer.weight.shape)
    features = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if isinstance(features[0], int) and isinstance(features[1], int):
        return features[1], features[0]
    return None


def is_depthwise_3x3(layer: nn.Module) -> bool:
    """Whether the per-sample kernel can run this layer."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == layer.in_channels == layer.out_channels
        and layer.kernel_size == (3, 3)
        and layer.stride == (1, 1)
        and layer.padding == (1, 1)
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
    )
