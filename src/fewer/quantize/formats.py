"""The number formats: how a residual weight and an activation become 4- or 8-bit codes, exactly.

Every weight format is the same two steps, so that round-to-nearest and GPTQ share them:
`scales` looks at the whole residual and fixes one effective scale per group; `nearest` turns
residual / scale into codes. Rounding is half-to-even unless a function says otherwise.
Source: SVDQuant (arXiv 2411.05007) section 4 and the published engine's number formats.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor
from torch.nn import functional

from fewer.core.errors import ConfigError

FormatName = Literal["int4", "nvfp4", "h8", "w4a8", "w4a16"]
WeightGrid = Literal["int4", "nvfp4", "h8"]
ActivationGrid = Literal["int4", "nvfp4", "int8", "none"]

GELU_SHIFT = 11 / 64  # GELU(tanh) >= -0.17004, so h + 11/64 is never negative (spec of the INT4 engine)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3_MAX = 448.0
ROWS_AT_ONCE = 256
AT_ONCE = 2**19  # numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way of storing a linear layer's weight and of rounding its input."""

    name: FormatName
    """Its name on the command line."""
    weight: WeightGrid
    """The grid of the weight codes."""
    activation: ActivationGrid
    """The grid of the activations; "none" leaves them in 16 bits."""
    group: int
    """Input channels that share a weight scale."""


FORMATS: dict[str, Format] = {
    "int4": Format(name="int4", weight="int4", activation="int4", group=64),
    "nvfp4": Format(name="nvfp4", weight="nvfp4", activation="nvfp4", group=16),
    "h8": Format(name="h8", weight="h8", activation="int8", group=64),
    "w4a8": Format(name="w4a8", weight="int4", activation="int8", group=64),
    "w4a16": Format(name="w4a16", weight="int4", activation="none", group=64),
}


def pick_format(name: str) -> Format:
    """The format of that name. Raises `ConfigError` for an unknown one."""
    if name not in FORMATS:
        raise ConfigError(f"format {name!r} is not known; allowed: {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of one weight: value = code * group * channel (channel is absent for int4)."""

    group: Tensor
    """[out, groups]: bf16/fp16/fp32 (int4), float8_e4m3fn (nvfp4) or uint8 multipliers 1..18 (h8)."""
    channel: Tensor | None = None
    """[out] fp32: per-tensor scale repeated (nvfp4) or the grid of each output channel (h8)."""

    def effective(self) -> Float[Tensor, "out groups"]:
        """What a code is multiplied by, in fp32."""
        scale = self.group.float()
        return scale if self.channel is None else scale * self.channel[:, None]


def pad_to(matrix: Float[Tensor, "rows dim"], multiple: int) -> Float[Tensor, "rows padded"]:
    """Appends zero columns until the width is a multiple of `multiple`."""
    missing = -matrix.shape[1] % multiple
    return functional.pad(matrix, (0, missing)) if missing else matrix


def weight_scales(
    residual: Float[Tensor, "out padded"],
    form: Format,
    scale_dtype: torch.dtype = torch.bfloat16,
    tensor_peak: Float[Tensor, ""] | None = None,
) -> Scales:
    """The scales of a residual whose width is a multiple of the group. All-zero groups get a scale of 1.

    `tensor_peak` is the largest magnitude of the whole weight when `residual` is only some of its rows
    (nvfp4 has one scale for all of it; the other formats do not need it).
    """
    groups = residual.float().unflatten(1, (-1, form.group))
    peak = torch.linalg.vector_norm(groups, ord=torch.inf, dim=2)  # the largest magnitude, without a copy
    if form.weight == "int4":
        scale = (peak / 7).clamp_max(torch.finfo(scale_dtype).max).to(scale_dtype)
        return Scales(torch.where(scale > 0, scale, torch.ones_like(scale)))
    if form.weight == "nvfp4":
        # two levels: one fp32 scale for the tensor, e4m3 per group of 16 that then never overflows
        # rounded to 16 bits, because files keep it so
        highest = peak.amax() if tensor_peak is None else tensor_peak
        tensor_scale = (highest / (6 * E4M3_MAX)).to(scale_dtype).float()
        tensor_scale = tensor_scale.clamp_min(torch.finfo(scale_dtype).tiny)
        tensor_scale = torch.where(highest > 0, tensor_scale, torch.ones_like(tensor_scale))
        scale = to_e4m3(peak / (6 * tensor_scale))
        zero = scale.float() == 0
        scale = torch.where(zero, torch.ones_like(scale.float()), scale.float()).to(torch.float8_e4m3fn)
        return Scales(scale, tensor_scale.expand(residual.shape[0]).clone())
    return _h8_scales(groups, peak)


def _h8_scales(groups: Float[Tensor, "out groups group"], peak: Float[Tensor, "out groups"]) -> Scales:
    """H8: an integer multiplier t in 1..18 per group times one fp32 scale per output channel.

    7 * 18 = 126, so code * t always fits int8. The clipped search over four values of t beats plain
    bf16 group scales in held-out error.
    """
    channel = peak.amax(dim=1) / 126
    channel = torch.where(channel > 0, channel, torch.ones_like(channel))
    first = torch.round(peak / (7 * channel[:, None]))
    best = torch.full_like(peak, math.inf)
    multiplier = torch.ones_like(peak)
    for offset in (-2, -1, 0, 1):
        trial = (first + offset).clamp(1, 18)
        scale = (trial * channel[:, None])[:, :, None]
        codes = torch.round(groups / scale).clamp(-7, 7)
        error = (codes * scale - groups).square().sum(dim=2)
        better = error < best
        best = torch.where(better, error, best)
        multiplier = torch.where(better, trial, multiplier)
    return Scales(multiplier.to(torch.uint8), channel)


def nearest_codes(scaled: Float[Tensor, "*shape"], form: Format) -> Int8[Tensor, "*shape"]:
    """Codes of weights already divided by their effective scale: -7..7, or e2m1 codes 0..15."""
    if form.weight == "nvfp4":
        return e2m1_codes(scaled, ties="lower")
    return torch.round(scaled).clamp(-7, 7).to(torch.int8)


def code_values(codes: Int8[Tensor, "*shape"], form: Format) -> Float[Tensor, "*shape"]:
    """The numbers that codes stand for, before any scale."""
    return e2m1_values(codes) if form.weight == "nvfp4" else codes.float()


def encode_weight(
    residual: Float[Tensor, "out dim"],
    form: Format,
    scale_dtype: torch.dtype = torch.bfloat16,
    tensor_peak: Float[Tensor, ""] | None = None,
) -> tuple[Int8[Tensor, "out padded"], Scales]:
    """Round-to-nearest of a whole weight, or of some of its rows given the whole one's `tensor_peak`.

    The width is zero-padded to a multiple of the group.
    """
    padded = pad_to(residual.float(), form.group)
    scales = weight_scales(padded, form, scale_dtype, tensor_peak)
    codes, steps = torch.empty_like(padded, dtype=torch.int8), scales.effective()
    for begin in range(0, len(padded), ROWS_AT_ONCE):  # a few rows at a time: no second and third copy
        rows = slice(begin, begin + ROWS_AT_ONCE)
        scaled = padded[rows].unflatten(1, (-1, form.group)) / steps[rows, :, None]
        codes[rows] = nearest_codes(scaled, form).flatten(1)
    return codes, scales


def decode_weight(
    codes: Int8[Tensor, "out padded"], scales: Scales, form: Format, width: int
) -> Float[Tensor, "out dim"]:
    """The fp32 weight that codes and scales stand for, without the padding."""
    values = code_values(codes, form).unflatten(1, (-1, form.group))
    return values.mul_(scales.effective()[:, :, None]).flatten(1)[:, :width]


def round_weight(
    residual: Float[Tensor, "out dim"],
    form: Format,
    scale_dtype: torch.dtype = torch.bfloat16,
    tensor_peak: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "out dim"]:
    """`decode(encode(residual))`: the residual on the format's grid, without making codes in between."""
    padded = pad_to(residual.float(), form.group)
    step = weight_scales(padded, form, scale_dtype, tensor_peak).effective()[:, :, None]
    scaled = padded.unflatten(1, (-1, form.group)) / step
    if form.weight == "nvfp4":
        values = e2m1_values(e2m1_codes(scaled, ties="lower"))
    else:
        values = scaled.round_().clamp_(-7, 7)
    return values.mul_(step).flatten(1)[:, : residual.shape[1]]


def round_activations(
    inputs: Float[Tensor, "rows dim"],
    form: Format,
    *,
    unsigned: bool = False,
    scale_dtype: torch.dtype = torch.bfloat16,
    scale_rounding: Literal["reference", "engine"] = "reference",
) -> Float[Tensor, "rows dim"]:
    """The inputs on the grid of the format's activations, in fp32 (dynamic scales, one per row and group).

    `unsigned` uses codes 0..15 and is for inputs that are never negative (int4 only).
    `scale_rounding="engine"` divides by the unrounded scale, as the published engine does; the
    reference divides by the rounded one. They differ in single codes.
    """
    if form.activation == "none":
        return inputs.float()
    height = max(1, AT_ONCE // max(1, inputs.shape[1]))
    if inputs.is_cuda or len(inputs) <= height:
        return _round_rows(inputs, form, unsigned, scale_dtype, scale_rounding)
    rounded = torch.empty_like(inputs, dtype=torch.float32)
    for begin in range(0, len(inputs), height):  # rows are independent and need several copies each
        rows = slice(begin, begin + height)
        rounded[rows] = _round_rows(inputs[rows], form, unsigned, scale_dtype, scale_rounding)
    return rounded


def _round_rows(
    inputs: Tensor, form: Format, unsigned: bool, scale_dtype: torch.dtype, scale_rounding: str
) -> Tensor:
    if form.activation == "int8":
        codes, scale = int8_rows(inputs)
        return codes.float() * scale[:, None]
    group = form.group
    groups = pad_to(inputs.float(), group).unflatten(1, (-1, group))
    if form.activation == "nvfp4":
        exact = (groups.abs().amax(dim=2, keepdim=True) / 6).clamp_max(E4M3_MAX)
        stored = to_e4m3(exact).float()
        divisor = exact if scale_rounding == "engine" else stored
        codes = e2m1_codes(_divide(groups, divisor), ties="even")
        rounded = e2m1_values(codes) * stored
    else:
        top, bottom = (15, 0) if unsigned else (7, -7)
        peak = groups.amax(dim=2, keepdim=True) if unsigned else groups.abs().amax(dim=2, keepdim=True)
        exact = (peak / top).clamp(0, torch.finfo(scale_dtype).max)
        stored = exact.to(scale_dtype).float()
        divisor = exact if scale_rounding == "engine" else stored
        rounded = torch.round(_divide(groups, divisor)).clamp(bottom, top) * stored
    return rounded.flatten(1)[:, : inputs.shape[1]]


def int8_rows(inputs: Float[Tensor, "rows dim"]) -> tuple[Int8[Tensor, "rows dim"], Float[Tensor, "rows"]]:
    """Per-token int8: codes in -127..127 and fp32 scales max|row| / 127 (0 becomes 1)."""
    scale = inputs.float().abs().amax(dim=1) / 127 if inputs.shape[1] else inputs.new_ones(len(inputs))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = torch.round(inputs.float() / scale[:, None]).clamp(-127, 127)
    return codes.to(torch.int8), scale


def e2m1_codes(values: Float[Tensor, "*shape"], ties: Literal["even", "lower"]) -> Int8[Tensor, "*shape"]:
    """Nearest of ±{0, .5, 1, 1.5, 2, 3, 4, 6}; code = sign << 3 | index, saturating at ±6.

    Ties go to the even code (what the hardware does to activations) or to the lower index (what the
    published weight converters do; they never give negative zero either).
    """
    index = torch.bucketize(values.float().abs(), _middles(ties, values.device))
    negative = torch.signbit(values)
    if ties == "lower":
        negative = negative & (index > 0)
    return (index + 8 * negative).to(torch.int8)


def e2m1_values(codes: Int8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The numbers of e2m1 codes 0..15."""
    return _e2m1_table(codes.device)[codes.long() & 15]


@cache  # made once: every copy of a table to a GPU would wait for all that it still has to do
def _e2m1_table(device: torch.device) -> Tensor:
    return torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.float32, device=device)


@cache
def _middles(ties: str, device: torch.device) -> Tensor:
    """Where one magnitude ends and the next begins."""
    middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(E2M1)], dtype=torch.float32)
    if ties == "even":
        # 0.75, 1.75 and 3.5 lie between an odd and a higher even code: the tie belongs to the higher one
        middles[1::2] = torch.nextafter(middles[1::2], torch.zeros(3))
    return middles.to(device)


def to_e4m3(values: Float[Tensor, "*shape"]) -> Tensor:
    """Saturating cast to float8_e4m3fn (torch alone would give NaN above 448)."""
    return values.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def expand_h8(packed: UInt8[Tensor, "*shape"], multiplier: int) -> Int8[Tensor, "*shape"]:
    """The kernels' two-instruction expansion of codes u = q + 8, one per byte, to int8 q * t.

    `(P * t + 0x01010101 * (128 - 8 t)) ^ 0x80808080` on 32-bit words; exact for u in 1..15, t in 1..18.
    """
    words = packed.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    shifted = (words * multiplier + 0x01010101 * (128 - 8 * multiplier)) & 0xFFFFFFFF
    expanded = shifted ^ 0x80808080
    return torch.where(expanded >= 2**31, expanded - 2**32, expanded).to(torch.int32).view(torch.int8)


def _divide(values: Tensor, divisor: Tensor) -> Tensor:
    """values / divisor with 0 where the divisor is 0 (an all-zero group has code 0)."""
    return torch.where(divisor > 0, values / divisor, torch.zeros_like(values))
