"""Linear layers as the engine sees them: rows in, rows out, with the sum and the norm before.

A layer of 16 bits is a `DenseProduct`. A quantized layer makes its own product (its method `fuse`): this room
knows tensors and the protocol, not the formats. What neither covers (an adapter around a layer, say) has no
product, and the block that holds it runs as it always did.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.generate.engine.layouts import neighbours
from fewer.generate.lora import AdaptedLayer
from fewer.kernels.dense import activated_linear
from fewer.kernels.norms import summed_and_modulated
from fewer.kernels.scratch import WeightScratch


@runtime_checkable
class Product(Protocol):
    """(silu?(layer(modulate?(total))), total) with total = rows + gate · update."""

    def __call__(
        self,
        rows: Tensor,
        *,
        update: Tensor | None = None,
        gate: Tensor | None = None,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        eps: float = 1e-6,
        silu: bool = False,
    ) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Attended(Protocol):
    """Rows to what linear attention makes of them, queries, keys and values never whole in between."""

    def fits(self, rows: Tensor, batch: int) -> bool: ...

    def __call__(self, rows: Tensor, batch: int, **before: Any) -> tuple[Tensor, Tensor]: ...


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
        update: Float[Tensor, "rows dim"] | None = None,
        gate: Float[Tensor, "batch dim"] | None = None,
        shift: Float[Tensor, "batch dim"] | None = None,
        scale: Float[Tensor, "batch dim"] | None = None,
        eps: float = 1e-6,
        silu: bool = False,
    ) -> tuple[Float[Tensor, "rows outputs"], Float[Tensor, "rows dim"]]:
        total, read = summed_and_modulated(rows, update, gate, shift, scale, eps)
        return activated_linear(read, self.weight, self.bias, "silu" if silu else "none"), total


def make_product(
    layers: Sequence[nn.Module],
    scratch: WeightScratch,
    dtype: torch.dtype,
    *,
    keep: bool = False,
    fold: bool = False,
    summed: bool = False,
) -> Product | None:
    """The product of layers that read the same rows, or None if the engine has none for them."""
    if all(is_dense(layer) for layer in layers):
        return DenseProduct(layers)
    first = layers[0]
    if all(hasattr(layer, "fuse") for layer in layers):
        return first.fuse(  # pyright: ignore
            layers[1:], scratch, dtype, keep=keep, fold=fold, summed=summed
        )
    return None


def run_in_order(products: Sequence[Product]) -> None:
    """Tells products that can prepare for the one after them which one that is."""
    able = [product for product in products if hasattr(product, "following")]
    for product, following in zip(able, [*able[1:], None], strict=False):
        product.following = following  # pyright: ignore[reportAttributeAccessIssue]


def layer_key(layer: nn.Module) -> Hashable:
    """Differs when a product or graph made from the layer is out of date: other weights, another adapter."""
    if isinstance(layer, AdaptedLayer):
        adapters = tuple((name, scale, layer.tokens[name]) for name, scale in layer.scales.items())
        return (layer_key(layer.layer), adapters, tuple(down.data_ptr() for down in layer.downs.values()))
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
    if neighbours(weights):  # joined before, by another model that shares them
        first, rows = weights[0].detach().flatten(1), sum(weight.shape[0] for weight in weights)
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
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
