"""Linear layers as the engine sees them: rows in, rows out, with the norm before and the sum after.

A layer of 16 bits is a `DenseProduct`. A quantized layer makes its own product (its method `fuse`): this room
knows tensors and the protocol, not the formats. What neither covers (an adapter around a layer, say) has no
product, and the block that holds it runs as it always did.
"""

from collections.abc import Hashable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewer.generate.lora import AdaptedLayer
from fewer.kernels.norms import modulated_norm
from fewer.kernels.scratch import WeightScratch


@runtime_checkable
class Product(Protocol):
    """residual + gate · silu?(layer(modulate?(rows)))."""

    def __call__(
        self,
        rows: Tensor,
        *,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        eps: float = 1e-6,
        silu: bool = False,
        gate: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor: ...


class DenseProduct:
    """One or several `nn.Linear` or 1x1 convolutions that read the same rows."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.weight = join_weights(layers)
        biases = [layer.bias for layer in layers]
        self.bias = None
        if any(bias is not None for bias in biases):
            zeros = [self.weight.new_zeros(_weight(layer).shape[0]) for layer in layers]
            parts = [zero if bias is None else bias for zero, bias in zip(zeros, biases, strict=True)]
            self.bias = parts[0] if len(parts) == 1 else torch.cat([part.detach() for part in parts])

    def __call__(
        self,
        rows: Float[Tensor, "rows dim"],
        *,
        shift: Float[Tensor, "batch dim"] | None = None,
        scale: Float[Tensor, "batch dim"] | None = None,
        eps: float = 1e-6,
        silu: bool = False,
        gate: Float[Tensor, "batch outputs"] | None = None,
        residual: Float[Tensor, "rows outputs"] | None = None,
    ) -> Float[Tensor, "rows outputs"]:
        if shift is not None and scale is not None:
            batched = rows.reshape(shift.shape[0], -1, rows.shape[1])
            rows = modulated_norm(batched, shift, scale, eps).flatten(0, 1)
        result = functional.linear(rows, self.weight, self.bias)
        if silu:
            result = functional.silu(result, inplace=not result.requires_grad)
        return gated_sum(result, gate, residual)


def gated_sum(
    result: Float[Tensor, "rows outputs"],
    gate: Float[Tensor, "batch outputs"] | None,
    residual: Float[Tensor, "rows outputs"] | None,
) -> Float[Tensor, "rows outputs"]:
    """residual + gate · result in one elementwise pass; each row of `gate` serves rows / batch rows."""
    if residual is None:
        assert gate is None, "a gate without a residual has no use here"
        return result
    if gate is None:
        return residual + result
    batched = result.reshape(gate.shape[0], -1, gate.shape[1])
    return torch.addcmul(residual.reshape(batched.shape), gate[:, None], batched).flatten(0, 1)


def make_product(
    layers: Sequence[nn.Module], scratch: WeightScratch, dtype: torch.dtype, *, keep: bool = False
) -> Product | None:
    """The product of layers that read the same rows, or None if the engine has none for them."""
    if all(is_dense(layer) for layer in layers):
        return DenseProduct(layers)
    first = layers[0]
    if all(hasattr(layer, "fuse") for layer in layers):
        return first.fuse(layers[1:], scratch, dtype, keep=keep)  # pyright: ignore
    return None


def layer_key(layer: nn.Module) -> Hashable:
    """Differs when a product or graph made from the layer is out of date: other weights, another adapter."""
    if isinstance(layer, AdaptedLayer):
        scales = tuple(sorted(layer.scales.items()))
        return (layer_key(layer.layer), scales, tuple(down.data_ptr() for down in layer.downs.values()))
    if hasattr(layer, "fusion_key"):
        return layer.fusion_key()  # pyright: ignore
    return (id(layer), is_dense(layer), _weight(layer).data_ptr(), _weight(layer).dtype)


def is_dense(layer: nn.Module) -> bool:
    """Whether it is exactly a linear layer or a 1x1 convolution, with nothing hooked to it."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return False
    if type(layer) is nn.Conv2d:
        return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1
    return type(layer) is nn.Linear


def join_weights(layers: Sequence[nn.Module]) -> Float[Tensor, "outputs dim"]:
    """The weights one below the other. Each layer keeps its own rows of the joint tensor: no second copy."""
    if len(layers) == 1:
        return _weight(layers[0]).flatten(1)
    weights = [_weight(layer) for layer in layers]
    with torch.no_grad():
        joint = torch.cat([weight.flatten(1) for weight in weights])
        if any(weight.is_inference() for weight in weights):
            return joint  # parameters born in inference mode cannot be given other memory
        parts = joint.split([weight.shape[0] for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.data = part.view(weight.shape)
    return joint


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
