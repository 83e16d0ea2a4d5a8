"""H8 layers as the engine runs them: a pass that quantizes, an expansion, a product with all that follows.

K1 (`quantize_rows`): gated sum, LayerNorm and modulation where asked, down projection, smoothing, int8 codes.
Expansion (`expand_h8`): 4-bit codes into the scratch buffer that all layers share, on a stream beside K1.
K2 (`int8_linear`): the product, scales, up projection, bias and activation (svdquant §2.9).
Layers that read the same rows (queries, keys, values) become one product. In layers too small to gain from
8-bit activations the weight is decoded to 16 bits instead, branch included, and multiplied by cuBLAS.
With `fold`, 8-bit weights include the branch as well: they are rounded once more, which adds about a tenth to
a layer's error, and neither the projection nor its part of the product is left.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int8, Shaped
from torch import Tensor
from torch.nn import functional

from fewer.generate.engine.layouts import neighbours
from fewer.kernels.attended import HEAD, attended_int8, fits_attended, order_of_heads
from fewer.kernels.dense import activated_linear
from fewer.kernels.h8 import Activation, decode_h8, expand_h8, int8_linear
from fewer.kernels.norms import summed_and_modulated
from fewer.kernels.quantize import QuantizedRows, quantize_rows
from fewer.kernels.scratch import WeightScratch
from fewer.quantize.formats import pad_to
from fewer.quantize.linear import QuantizedLinear

_JOINED = ("codes", "group_scale", "channel_scale")
LEAST_WEIGHTS_IN_INT8 = 3_500_000
LEAST_WEIGHTS_WHERE_FREE = 1_200_000
LEAST_OUTPUTS_IN_INT8 = 2560
"""Measured on one H100 from 2,048 to 32,768 rows: below, quantizing the rows costs what the faster product
saves. Both grow with rows × inputs, so the number of outputs decides, and for small layers the launches.
Behind a sum or a norm and with a folded branch, rounding is free."""


class FusedH8:
    """Rows to rows, for one or several h8 layers with the same input and the same smoothing."""

    def __init__(
        self,
        layers: Sequence[QuantizedLinear],
        scratch: WeightScratch,
        dtype: torch.dtype,
        *,
        keep: bool,
        int8: bool | None = None,
        fold: bool = False,
        summed: bool = False,
    ) -> None:
        """`int8` says whether rows are quantized; None lets the layer's size decide, on a GPU.

        `fold` expands the branch into the 8-bit weights: nothing is left of it at run time, and its part is
        rounded as they are and reads rounded rows. `summed`: its rows come with a sum or a norm, so that
        with a folded branch rounding them costs nothing.
        """
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
        self.inverse = None if self.smooth is None else self.smooth.float().reciprocal()
        down, up = joined_branch(layers)
        if down is not None and up is not None:
            # Kernels take whole tiles of ranks; what is added is zero.
            more = _whole_rank(down.shape[0]) - down.shape[0]
            down, up = functional.pad(down, (0, 0, 0, more)), functional.pad(up, (0, more))
        self.down = None if down is None else pad_to(down.to(dtype), self.group)
        self.up = None if up is None else up.to(dtype).contiguous()
        self.shape = (self.codes.shape[0], 2 * self.codes.shape[1])
        free = summed and fold
        self.int8 = (not self.codes.is_cuda or _pays(*self.shape, free)) if int8 is None else int8
        self.dtype = torch.int8 if self.int8 else dtype
        self.folded = self._fold(dtype) if fold and self.int8 and self.down is not None else None
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        scratch.reserve(0 if keep else size, self.codes.device)
        self.following: FusedH8 | None = None
        """Whose weight to expand beside this layer's product; set by whoever runs layers in a known order."""
        self.kept = None
        if keep:
            self.kept = self._expanded(torch.empty(self.shape, dtype=self.dtype, device=self.codes.device))

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
        activation: Activation = "none",
        out: Float[Tensor, "rows outputs"] | None = None,
    ) -> tuple[Float[Tensor, "rows outputs"], Float[Tensor, "rows dim"]]:
        """(silu?(layer(modulate?(total))), total), total = rows + gate · update; `out` takes the first."""
        activation = "silu" if silu else activation
        weight = self._begun()
        if self.int8:
            quantized, total = self.read(rows, update, gate, shift, scale, eps)
            return self.multiply(quantized, rows.dtype, activation, weight, out), total
        total, rows = summed_and_modulated(rows, update, gate, shift, scale, eps)
        self._prepare_following()
        # The columns that were added to the weight are left out here: copying the rows would cost more.
        y = activated_linear(rows, weight[:, : self.inputs], self.bias, activation)
        return (y if out is None else out.copy_(y)), total

    def read(
        self,
        rows: Float[Tensor, "rows dim"],
        update: Float[Tensor, "rows dim"] | None = None,
        gate: Float[Tensor, "batch dim"] | None = None,
        shift: Float[Tensor, "batch dim"] | None = None,
        scale: Float[Tensor, "batch dim"] | None = None,
        eps: float = 1e-6,
    ) -> tuple[QuantizedRows, Float[Tensor, "rows dim"]]:
        """What `multiply` multiplies, and the sum. Folded layers of equal smoothing may share it."""
        total, projected = rows, None
        unchanged = update is None and shift is None
        if rows.is_cuda and self.down is not None and unchanged:
            # Rows that nothing changes before can be projected while they are quantized.
            with self.scratch.beside(self.codes.device):
                projected = functional.linear(pad_to(rows, self.group), self.down)
        if self.inputs % self.group:
            # The padding would count in the kernel's norms, so these are a pass of their own.
            total, rows = summed_and_modulated(rows, update, gate, shift, scale, eps)
            update = gate = shift = scale = None
        down = self.down if projected is None else None
        padded = pad_to(rows, self.group)
        found = quantize_rows(padded, self.smooth, down, shift, scale, eps, update, gate, self.inverse)
        if projected is not None:
            found = replace(found, projected=projected)
        return found, total if update is None else found.total

    def multiply(
        self,
        quantized: QuantizedRows,
        dtype: torch.dtype,
        activation: Activation = "none",
        weight: Int8[Tensor, "outputs dim"] | None = None,
        out: Float[Tensor, "rows outputs"] | None = None,
    ) -> Float[Tensor, "rows outputs"]:
        """The product and all that follows it; `weight` where its expansion has begun."""
        weight = self._begun() if weight is None else weight
        self._prepare_following()
        return int8_linear(
            quantized.codes,
            quantized.scale,
            weight,
            self.channel_scale if self.folded is None else self.folded.step,
            bias=self.bias,
            projected=quantized.projected,
            up=self.up,
            activation=activation,
            dtype=dtype,
            out=out,
        )

    def for_attention(self, heads: int) -> "AttendedH8 | None":
        """Queries, keys and values (this product's outputs) with the linear attention behind them.

        None unless their 8-bit weights are kept, with nothing beside them. Heads of 32, an even number.
        """
        if self.kept is None or not self.int8 or self.down is not None or heads % 2:
            return None
        return AttendedH8(self, heads) if self.shape[0] == 3 * heads * HEAD else None

    def _begun(self) -> Shaped[Tensor, "outputs dim"]:
        """The weight: kept, expanded early, or being expanded beside (read it after `_prepare_following`)."""
        weight = self.scratch.take(self) if self.kept is None else self.kept
        if weight is None:
            with self.scratch.beside(self.codes.device):
                weight = self._expanded(self._room())
        return weight

    def _prepare_following(self) -> None:
        """Waits for what this layer needs, and starts on what the next one will."""
        self.scratch.join(self.codes.device)
        following = self.following
        if following is not None and following.kept is None and following.scratch is self.scratch:
            with self.scratch.beside(self.codes.device):
                self.scratch.keep(following, following._expanded(following._room()))

    def _room(self) -> Shaped[Tensor, "outputs dim"]:
        """This layer's place in the scratch buffer."""
        outputs, dim = self.shape
        return self.scratch.view(outputs, dim * self.dtype.itemsize, self.codes.device).view(self.dtype)

    def _fold(self, dtype: torch.dtype) -> "_Folded":
        """Takes the branch out of the product; what it adds to the weight of the smoothed rows stays."""
        assert self.down is not None and self.up is not None
        smooth = 1.0 if self.smooth is None else self.smooth.float()
        down, up = (self.down.float() * smooth).to(dtype), self.up
        wide = torch.empty(self.shape, dtype=torch.float32, device=self.codes.device)
        decode_h8(self.codes, self.group_scale, self.channel_scale, None, down, up, wide)
        self.down = self.up = None
        return _Folded(down, up, wide.abs().amax(1) / 127)

    def _expanded(self, out: Shaped[Tensor, "outputs dim"]) -> Shaped[Tensor, "outputs dim"]:
        stored = (self.codes, self.group_scale)
        if self.folded is not None:
            branch = (self.folded.down, self.folded.up)
            return decode_h8(*stored, self.channel_scale, None, *branch, out, self.folded.step)
        if self.int8:
            return expand_h8(*stored, out)
        return decode_h8(*stored, self.channel_scale, self.smooth, self.down, self.up, out)


class AttendedH8:
    """Rows to attended rows. Holds its weights a second time, in the order in which the kernel takes them."""

    def __init__(self, product: FusedH8, heads: int) -> None:
        assert product.kept is not None
        self.product, self.heads = product, heads
        order = order_of_heads(heads).to(product.kept.device)
        step = product.channel_scale if product.folded is None else product.folded.step
        self.weight, self.step = product.kept[order], step[order]
        self.bias = None if product.bias is None else product.bias[order]

    def fits(self, rows: Tensor, batch: int) -> bool:
        """Whether so many rows of so many pictures can go this way here."""
        return fits_attended(rows, self.heads, batch)

    def __call__(
        self, rows: Float[Tensor, "rows dim"], batch: int, **before: Any
    ) -> tuple[Float[Tensor, "rows inner"], Float[Tensor, "rows dim"]]:
        """(attention, total), as `FusedH8.read` takes what comes `before`."""
        quantized, total = self.product.read(rows, **before)
        codes, scale = quantized.codes, quantized.scale
        attended = attended_int8(
            codes, scale, self.weight, self.step, self.bias, self.heads, batch, dtype=rows.dtype
        )
        return attended, total


@dataclass(frozen=True, slots=True)
class _Folded:
    """A branch that is part of the 8-bit weight, for smoothed rows, and the weight's steps with it."""

    down: Float[Tensor, "rank dim"]
    up: Float[Tensor, "outputs rank"]
    step: Float[Tensor, " outputs"]


def fuse(
    layers: Sequence[QuantizedLinear],
    scratch: WeightScratch,
    dtype: torch.dtype,
    *,
    keep: bool = False,
    fold: bool = False,
    summed: bool = False,
) -> FusedH8 | None:
    """The layers as one product; None where the engine has none (other formats, unequal smoothing).

    `keep` expands the weights once and keeps them: twice the memory, no expansion in each call. `fold` makes
    the branch part of the 8-bit weights.
    """
    first = layers[0]
    for layer in layers:
        if layer.form.name != "h8" or layer.unsigned or layer.in_features != first.in_features:
            return None
        if (layer.smooth is None) != (first.smooth is None):
            return None
        if layer.smooth is not None and not torch.equal(layer.smooth, first.smooth):
            return None
    return FusedH8(layers, scratch, dtype, keep=keep, fold=fold, summed=summed)


def _pays(outputs: int, dim: int, free: bool) -> bool:
    """Whether 8-bit rows save more in the product than they cost before it, if they are not `free`."""
    if free:
        return outputs * dim >= LEAST_WEIGHTS_WHERE_FREE
    return outputs >= LEAST_OUTPUTS_IN_INT8 and outputs * dim >= LEAST_WEIGHTS_IN_INT8


def _whole_rank(rank: int) -> int:
    """The next rank that is a tile's: 16, 32, or a multiple of 64."""
    return next((size for size in (16, 32) if rank <= size), -(-rank // 64) * 64)


def fusion_key(layer: QuantizedLinear) -> Hashable:
    """Changes whenever what was fused (or captured in a graph) no longer is the layer."""
    adapters = tuple((name, a.token, a.strength) for name, a in layer.adapters.items())
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
        if neighbours([getattr(layer, name) for layer in layers]):
            continue  # by another model that shares them
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
