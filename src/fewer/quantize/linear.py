"""`QuantizedLinear`: the module that stands where an `nn.Linear` or a 1x1 convolution stood.

Its forward is the exact reference: it rounds the input as the format says, multiplies by the decoded weight
and adds the 16-bit branch, in fp32, on any device. A fused kernel may replace `reference_product` alone.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.quantize.formats import (
    GELU_SHIFT,
    Format,
    Scales,
    decode_weight,
    int8_rows,
    pad_to,
    round_activations,
)
from fewer.quantize.layer import QuantizedLayer, pack_halves, unpack_halves

if TYPE_CHECKING:
    from fewer.kernels.scratch import WeightScratch
    from fewer.quantize.fused import FusedH8


EXACT_COLUMNS = 1024  # 127 * 127 * 1024 < 2**24: every partial sum is an integer that fp32 holds


class QuantizedLinear(nn.Module):
    """y = round(x / lambda) decode(codes)^T + (x down^T) up^T + bias, plus any adapters."""

    codes: Tensor
    group_scale: Tensor
    channel_scale: Tensor | None
    smooth: Tensor | None
    low_down: Tensor | None
    low_up: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer, *, name: str = "") -> None:
        super().__init__()
        self.name = name
        self.form: Format = layer.form
        self.out_features, self.in_features = layer.shape
        self.unsigned, self.channels_first = layer.unsigned, layer.convolution
        self.register_buffer("codes", pack_halves(layer.codes, layer.form))
        self.register_buffer("group_scale", layer.scales.group)
        self.register_buffer("channel_scale", layer.scales.channel)
        self.register_buffer("smooth", layer.smooth)
        self.register_buffer("low_down", layer.down)
        self.register_buffer("low_up", layer.up)
        self.register_buffer("bias", layer.bias)
        self.adapters: dict[str, Adapter] = {}

    @property
    def layer(self) -> QuantizedLayer:
        """The same layer as plain data (adapters are not part of it)."""
        return QuantizedLayer(
            format=self.form.name,
            shape=(self.out_features, self.in_features),
            codes=unpack_halves(self.codes, self.form),
            scales=Scales(self.group_scale, self.channel_scale),
            smooth=self.smooth,
            down=self.low_down,
            up=self.low_up,
            bias=self.bias,
            unsigned=self.unsigned,
            convolution=self.channels_first,
        )

    @property
    def weight(self) -> Float[Tensor, "out dim"]:
        """The dense weight it stands for, computed on each access (models that look at `.weight.dtype` need
        it).
        """
        dtype = self.group_scale.dtype if self.form.weight == "int4" else torch.float32
        return self.layer.weight().to(dtype)

    def branch(self) -> tuple[Tensor, Tensor] | None:
        """(down, up) of the low-rank branch and every adapter's ranks, in fp32; None without any."""
        pairs = [] if self.low_down is None else [(self.low_down.float(), self.low_up.float())]
        pairs += [
            (adapter.down.float(), adapter.up.float() * adapter.strength)
            for adapter in self.adapters.values()
        ]
        if not pairs:
            return None
        return torch.cat([down for down, _ in pairs]), torch.cat([up for _, up in pairs], dim=1)

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Linear has, for those who call it by name
        """[..., in] -> [..., out] ([..., in, height, width] for a 1x1 convolution), in the input's dtype."""
        moved = input.movedim(-3, -1) if self.channels_first else input
        if moved.shape[-1] != self.in_features:
            raise ConfigError(
                f"layer {self.name!r} takes {self.in_features} channels, "
                f"got an input of shape {tuple(input.shape)}"
            )
        # Contiguous also for a batch of one: a product sums in another order where rows lie transposed.
        rows = moved.reshape(-1, self.in_features).contiguous()
        product = fused_h8_product if self.form.name == "h8" and rows.is_cuda else reference_product
        outputs = product(self, rows).to(input.dtype)
        outputs = outputs.reshape(*moved.shape[:-1], self.out_features)
        return outputs.movedim(-1, -3) if self.channels_first else outputs

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """What `.to()`, `.half()` and their like do: the layer moves to a device with its model, its adapters
        too, but number formats are its own. Scales of eight bits would be no scales in sixteen.
        """

        def moved(tensor: Tensor) -> Tensor:
            done = fn(tensor)
            return done if done.dtype == tensor.dtype else tensor.to(done.device)

        super()._apply(moved, recurse)
        self.adapters = {
            name: replace(adapter, down=moved(adapter.down), up=moved(adapter.up))
            for name, adapter in self.adapters.items()
        }
        return self

    def fusion_key(self) -> Hashable:
        """Changes whenever a product made by `fuse` no longer stands for this layer."""
        from fewer.quantize.fused import fusion_key

        return fusion_key(self)

    def fuse(
        self,
        others: Sequence["QuantizedLinear"],
        scratch: "WeightScratch",
        dtype: torch.dtype,
        *,
        keep: bool,
        fold: bool = False,
        summed: bool = False,
    ) -> "FusedH8 | None":
        """This layer and `others` that read the same rows as one product for the engine; see `fused.py`."""
        from fewer.quantize.fused import fuse

        return fuse((self, *others), scratch, dtype, keep=keep, fold=fold, summed=summed)

    def extra_repr(self) -> str:
        rank = 0 if self.low_down is None else self.low_down.shape[0]
        return f"{self.in_features} -> {self.out_features}, {self.form.name}, rank {rank}"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA on one layer: `strength * up @ down` is added to its weight.

    Another strength is another `Adapter`: copies of a model share these, but not what is set in one of them.
    """

    down: Float[Tensor, "rank dim"]
    up: Float[Tensor, "out rank"]
    strength: float
    unit: float = 1.0
    """The strength that the file's own alpha stands for."""
    token: object = field(default_factory=object, compare=False)
    """Tells it from one that is attached later; an address in memory would come again."""


def reference_product(linear: QuantizedLinear, rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows out"]:
    """The layer in fp32: what every kernel is compared with.

    For int8 activations the main product is in exact integers, so its accumulators equal a kernel's bit for
    bit.
    """
    inputs = rows.float()
    scaled = inputs + GELU_SHIFT if linear.unsigned else inputs
    if linear.smooth is not None:
        scaled = scaled / linear.smooth.float()
    form, scales = linear.form, Scales(linear.group_scale, linear.channel_scale)
    codes = unpack_halves(linear.codes, form)
    if form.name == "h8":
        outputs = h8_product(scaled, codes, scales, form.group)
    else:
        dtype = linear.group_scale.dtype if form.weight == "int4" else torch.bfloat16
        rounded = round_activations(scaled, form, unsigned=linear.unsigned, scale_dtype=_sixteen_bit(dtype))
        outputs = rounded @ decode_weight(codes, scales, form, linear.in_features).mT
    if (branch := linear.branch()) is not None:
        outputs = outputs + (inputs @ branch[0].mT) @ branch[1].mT
    return outputs if linear.bias is None else outputs + linear.bias.float()


def fused_h8_product(linear: QuantizedLinear, rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows out"]:
    """The same through the kernels: rounding and down projection in one pass, everything else in the other.

    On the CPU the operators are their own references, which is how this path is tested there.
    """
    from fewer.kernels.h8 import expand_h8, int8_linear
    from fewer.kernels.quantize import quantize_rows

    padding = -linear.in_features % linear.form.group
    branch, smooth = linear.branch(), linear.smooth
    down = None if branch is None else branch[0].to(rows.dtype)
    if padding:
        rows = pad_to(rows, linear.form.group)
        down = None if down is None else pad_to(down, linear.form.group)
        smooth = None if smooth is None else torch.nn.functional.pad(smooth, (0, padding), value=1.0)
    quantized = quantize_rows(rows, smooth, down)
    return int8_linear(
        quantized.codes,
        quantized.scale,
        expand_h8(linear.codes, linear.group_scale),
        linear.channel_scale,
        bias=linear.bias,
        projected=quantized.projected,
        up=None if branch is None else branch[1].to(rows.dtype),
        dtype=rows.dtype,
    )


def h8_product(
    inputs: Float[Tensor, "rows dim"], codes: Tensor, scales: Scales, group: int
) -> Float[Tensor, "rows out"]:
    """int8 activations times int8 weights code * t over the whole width, then a scale per row and column."""
    assert scales.channel is not None
    quantized, row_scale = int8_rows(inputs)
    weight = codes.int().unflatten(1, (-1, group)) * scales.group.int()[:, :, None]
    padded = pad_to(quantized.float(), group).to(torch.int8)
    return (
        integer_product(padded, weight.flatten(1).to(torch.int8)).float()
        * row_scale[:, None]
        * scales.channel
    )


def integer_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right.T of int8 matrices with exact sums: [rows, dim], [out, dim] -> [rows, out]."""
    if left.is_cuda and len(left) > 16 and left.shape[1] % 8 == 0 and len(right) % 8 == 0:
        return torch._int_mm(left, right.mT)
    if left.is_cuda:
        return (left.double() @ right.double().mT).to(torch.int64)  # exact below 2**53
    # a CPU's integer product is up to 28 times slower than fp32, whose sums of 1024 products are exact
    total = torch.zeros(len(left), len(right), dtype=torch.int32)
    for begin in range(0, left.shape[1], EXACT_COLUMNS):
        columns = slice(begin, begin + EXACT_COLUMNS)
        total += (left[:, columns].float() @ right[:, columns].float().mT).to(torch.int32)
    return total


def _sixteen_bit(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
