"""A quantized linear layer as plain data: what every checkpoint dialect is read into and written from."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from fewer.core.errors import FileError
from fewer.quantize.formats import FORMATS, GELU_SHIFT, Format, FormatName, Scales, decode_weight

TENSOR_NAMES = ("codes", "group_scale", "channel_scale", "smooth", "low_down", "low_up", "bias")


@dataclass(slots=True, kw_only=True)
class QuantizedLayer:
    """weight ~ decode(codes, scales) / smooth + up @ down; the bias already holds the unsigned shift."""

    format: FormatName
    """Number format of codes and activations."""
    shape: tuple[int, int]
    """(out, dim) of the original weight."""
    codes: Int8[Tensor, "out padded"]
    """-8..7 (int4, h8) or e2m1 codes 0..15 (nvfp4); the width is padded to the group."""
    scales: Scales
    """Group and channel scales."""
    smooth: Float[Tensor, "dim"] | None = None
    """lambda: the input is divided by it before rounding. None is all ones."""
    down: Float[Tensor, "rank dim"] | None = None
    """Down projection of the branch, acting on the input as it comes (not divided by lambda)."""
    up: Float[Tensor, "out rank"] | None = None
    """Up projection of the branch."""
    bias: Float[Tensor, "out"] | None = None
    """Bias, with the unsigned shift's correction when `unsigned`."""
    convolution: bool = False
    """It stood as a 1x1 convolution: channels are axis 1 of its input."""
    unsigned: bool = False
    """The input is never below -0.17 (GELU): add 11/64 and round to 0..15."""

    @property
    def form(self) -> Format:
        """The number format as an object."""
        return FORMATS[self.format]

    @property
    def rank(self) -> int:
        """Rank of the 16-bit branch, 0 without one."""
        return 0 if self.down is None else self.down.shape[0]

    def some_rows(self, rows: slice) -> "QuantizedLayer":
        """The layer of these outputs alone; its tensors are views of this one's."""
        channel = None if self.scales.channel is None else self.scales.channel[rows]
        codes = self.codes[rows]
        return replace(
            self,
            shape=(len(codes), self.shape[1]),
            codes=codes,
            scales=Scales(self.scales.group[rows], channel),
            up=None if self.up is None else self.up[rows],
            bias=None if self.bias is None else self.bias[rows],
        )

    def weight(self) -> Float[Tensor, "out dim"]:
        """The dense fp32 weight this layer stands for, acting on the unsmoothed input."""
        dense = decode_weight(self.codes, self.scales, self.form, self.shape[1])
        if self.smooth is not None:
            dense = dense.div_(self.smooth.float())
        if self.up is not None and self.down is not None:
            dense = dense.addmm_(self.up.float(), self.down.float())
        return dense

    def dense_bias(self) -> Float[Tensor, "out"] | None:
        """The bias that belongs to `weight()`: the stored one without the unsigned shift's correction."""
        if self.bias is None or not self.unsigned:
            return self.bias
        residual = decode_weight(self.codes, self.scales, self.form, self.shape[1])
        residual = residual if self.smooth is None else residual / self.smooth.float()
        return self.bias.float() + GELU_SHIFT * residual.sum(dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """What is written to a file: codes packed two to a byte, absent parts left out."""
        named = {
            "codes": pack_halves(self.codes, self.form),
            "group_scale": self.scales.group,
            "channel_scale": self.scales.channel,
            "smooth": self.smooth,
            "low_down": self.down,
            "low_up": self.up,
            "bias": self.bias,
        }
        return {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}

    def facts(self) -> dict[str, object]:
        """What the configuration says of this layer beside its tensors."""
        flags: dict[str, object] = {name: True for name in ("unsigned", "convolution") if getattr(self, name)}
        return {"format": self.format, "shape": list(self.shape), "rank": self.rank, **flags}

    def byte_count(self) -> int:
        """Bytes of its tensors in a file."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())


def layer_from_tensors(tensors: dict[str, Tensor], facts: object, name: str) -> QuantizedLayer:
    """The inverse of `tensors()` and `facts()`, which come from a file and may be anything.

    Raises `FileError` naming the layer if they do not fit.
    """
    facts = facts if isinstance(facts, dict) else {}
    form, shape, rank = FORMATS.get(str(facts.get("format"))), facts.get("shape"), facts.get("rank", 0)
    unknown = set(tensors) - set(TENSOR_NAMES)
    sizes = [*shape, rank] if isinstance(shape, list) else []
    sound = len(sizes) == 3 and all(type(size) is int and size >= 0 for size in sizes)
    if form is None or unknown or not sound or 0 in sizes[:2]:
        raise FileError(f"layer {name!r}: bad facts {facts} or unexpected tensors {sorted(unknown)}")
    out, dim, rank = sizes
    groups = -(-dim // form.group)
    expected = {"codes": (out, groups * form.group // 2), "group_scale": (out, groups)}
    if form.weight != "int4":
        expected["channel_scale"] = (out,)
    if rank:
        expected |= {"low_down": (rank, dim), "low_up": (out, rank)}
    expected |= {key: size for key, size in {"smooth": (dim,), "bias": (out,)}.items() if key in tensors}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if found != expected:
        raise FileError(f"layer {name!r} should have tensors {expected}, the file has {found}")
    _check_values(tensors, form, name)
    return QuantizedLayer(
        format=form.name,
        shape=(out, dim),
        codes=unpack_halves(tensors["codes"], form),
        scales=Scales(tensors["group_scale"], tensors.get("channel_scale")),
        smooth=tensors.get("smooth"),
        down=tensors.get("low_down"),
        up=tensors.get("low_up"),
        bias=tensors.get("bias"),
        unsigned=bool(facts.get("unsigned", False)),
        convolution=bool(facts.get("convolution", False)),
    )


_SIXTEEN = (torch.bfloat16, torch.float16, torch.float32)
_DTYPES = {"codes": (torch.uint8,), "channel_scale": (torch.float32,)}
_SCALES = {"int4": _SIXTEEN, "nvfp4": (torch.float8_e4m3fn,), "h8": (torch.uint8,)}


def _check_values(tensors: dict[str, Tensor], form: Format, name: str) -> None:
    """Number formats, and scales that a layer can be computed with."""
    for part, tensor in tensors.items():
        allowed = _SCALES[form.weight] if part == "group_scale" else _DTYPES.get(part, _SIXTEEN)
        if tensor.dtype not in allowed:
            raise FileError(
                f"layer {name!r}: {part} is {tensor.dtype}, format {form.name} keeps "
                f"{' or '.join(str(dtype) for dtype in allowed)}"
            )
        if tensor.dtype in _SIXTEEN and not torch.isfinite(tensor).all():
            raise FileError(f"layer {name!r}: {part} has NaN or Inf; the file is damaged, copy it again")
    if form.weight == "h8" and tensors["group_scale"].numel():
        low, high = (int(value) for value in tensors["group_scale"].aminmax())
        if low < 1 or high > 18:
            raise FileError(f"layer {name!r}: group multipliers are {low} .. {high}, allowed are 1 .. 18")


def pack_halves(codes: Int8[Tensor, "out padded"], form: Format) -> UInt8[Tensor, "out half"]:
    """Two codes a byte ("fewer-h8-v1"): in each group the first half in low nibbles, the second in high ones.

    Integer codes are stored as code + 8, so that `P & 0x0F0F0F0F` and `(P >> 4) & 0x0F0F0F0F` give a kernel
    two contiguous halves without shuffles; e2m1 codes are stored as they are.
    """
    stored = codes if form.weight == "nvfp4" else codes + 8
    low, high = stored.to(torch.uint8).unflatten(1, (-1, 2, form.group // 2)).unbind(2)
    return (low | (high << 4)).flatten(1)


def unpack_halves(packed: UInt8[Tensor, "out half"], form: Format) -> Int8[Tensor, "out padded"]:
    """The inverse of `pack_halves`."""
    halves = packed.unflatten(1, (-1, form.group // 2))
    codes = torch.stack([halves & 15, halves >> 4], dim=2).flatten(1).to(torch.int8)
    return codes if form.weight == "nvfp4" else codes - 8
