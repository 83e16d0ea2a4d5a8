"""H8 layers as the engine runs them: a pass that quantizes, an expansion, a product with all that follows.

K1 (`quantize_rows`): LayerNorm and modulation where there is one, down projection, smoothing, int8 codes.
Expansion (`expand_h8`): 4-bit codes into the scratch buffer that all layers share.
K2 (`int8_linear`): the product, scales, up projection, bias, activation, gate and residual (svdquant §2.9).
Layers that read the same rows (queries, keys, values) become one product.
"""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fewer.kernels.h8 import expand_h8, int8_linear
from fewer.kernels.quantize import quantize_rows
from fewer.kernels.scratch import WeightScratch
from fewer.quantize.formats import pad_to
from fewer.quantize.linear import QuantizedLinear

_JOINED = ("codes", "group_scale", "channel_scale")


class FusedH8:
    """Rows to rows, for one or several h8 layers with the same input and the same smoothing."""

    def __init__(
        self, layers: Sequence[QuantizedLinear], scratch: WeightScratch, dtype: torch.dtype, *, keep: bool
    ) -> None:
        first = layers[0]
        self.scratch, self.group = scratch, first.form.group
        self.inputs = first.in_features
        _share_storage(layers)
        self.codes, self.group_scale, self.channel_scale = (
            _rows_of([getattr(layer, name) for layer in layers]) for name in _JOINED
        )
        self.bias = _joined_bias(layers)
        padding = -self.inputs % self.group
        smooth = first.smooth
        self.smooth = None if smooth is None else functional.pad(smooth, (0, padding), value=1.0)
        down, up = joined_branch(layers)
        self.down = None if down is None else pad_to(down.to(dtype), self.group)
        self.up = None if up is None else up.to(dtype).contiguous()
        self.shape = (self.codes.shape[0], 2 * self.codes.shape[1])
        self.kept = expand_h8(self.codes, self.group_scale) if keep else None
        scratch.reserve(0 if keep else self.shape[0] * self.shape[1], self.codes.device)

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
        """residual + gate · silu?(layer(modulate(rows))). Norm statistics need an unpadded width."""
        dtype = rows.dtype
        if self.inputs % self.group:
            if shift is not None and scale is not None:
                from fewer.kernels.norms import modulated_norm

                batched = rows.reshape(shift.shape[0], -1, self.inputs)
                rows, shift, scale = modulated_norm(batched, shift, scale, eps).flatten(0, 1), None, None
            rows = pad_to(rows, self.group)
        quantized = quantize_rows(rows, self.smooth, self.down, shift, scale, eps)
        weight = self.kept
        if weight is None:
            out = self.scratch.view(*self.shape, self.codes.device)
            weight = expand_h8(self.codes, self.group_scale, out)
        return int8_linear(
            quantized.codes,
            quantized.scale,
            weight,
            self.channel_scale,
            bias=self.bias,
            projected=quantized.projected,
            up=self.up,
            activation="silu" if silu else "none",
            gate=gate,
            residual=residual,
            dtype=dtype,
        )


def fuse(
    layers: Sequence[QuantizedLinear], scratch: WeightScratch, dtype: torch.dtype, *, keep: bool = False
) -> FusedH8 | None:
    """The layers as one product; None where the engine has none (other formats, unequal smoothing).

    `keep` expands the weights once and keeps them: twice the memory, no expansion in each call.
    """
    first = layers[0]
    for layer in layers:
        if layer.form.name != "h8" or layer.unsigned or layer.in_features != first.in_features:
            return None
        if (layer.smooth is None) != (first.smooth is None):
            return None
        if layer.smooth is not None and not torch.equal(layer.smooth, first.smooth):
            return None
    return FusedH8(layers, scratch, dtype, keep=keep)


def fusion_key(layer: QuantizedLinear) -> Hashable:
    """Changes whenever what was fused (or captured in a graph) no longer is the layer."""
    adapters = tuple((name, id(a.down), a.strength) for name, a in layer.adapters.items())
    return (id(layer), layer.codes.data_ptr(), adapters)


def joined_branch(layers: Sequence[QuantizedLinear]) -> tuple[Tensor | None, Tensor | None]:
    """(down, up) of all layers together: a shared down projection once, different ones side by side."""
    branches = [layer.branch() for layer in layers]
    present = [branch for branch in branches if branch is not None]
    if not present:
        return None, None
    downs = [down for down, _ in present]
    shared = len(present) == len(layers) and all(
        down.shape == downs[0].shape and torch.equal(down, downs[0]) for down in downs
    )
    if shared:
        return downs[0], torch.cat([up for _, up in present])
    outputs, rank = [layer.out_features for layer in layers], sum(down.shape[0] for down in downs)
    up = present[0][1].new_zeros(sum(outputs), rank)
    row = column = 0
    for branch, count in zip(branches, outputs, strict=True):
        if branch is not None:
            width = branch[1].shape[1]
            up[row : row + count, column : column + width] = branch[1]
            column += width
        row += count
    return torch.cat(downs), up


def _share_storage(layers: Sequence[QuantizedLinear]) -> None:
    """Makes the layers' weights neighbours in one tensor of which each keeps its rows: no second copy."""
    if len(layers) == 1:
        return
    for name in _JOINED:
        joined = torch.cat([getattr(layer, name) for layer in layers])
        parts = joined.split([layer.out_features for layer in layers])
        for layer, part in zip(layers, parts, strict=True):
            setattr(layer, name, part)


def _rows_of(parts: list[Tensor]) -> Tensor:
    """The tensor whose consecutive rows `parts` are (after `_share_storage`), without copying it."""
    if len(parts) == 1:
        return parts[0]
    rows = sum(part.shape[0] for part in parts)
    shape, stride = (rows, *parts[0].shape[1:]), parts[0].stride()
    return parts[0].as_strided(shape, stride, parts[0].storage_offset())


def _joined_bias(layers: Sequence[QuantizedLinear]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    zeros = [layer.channel_scale.new_zeros(layer.out_features) for layer in layers]
    return torch.cat(
        [zero if layer.bias is None else layer.bias for layer, zero in zip(layers, zeros, strict=True)]
    )
