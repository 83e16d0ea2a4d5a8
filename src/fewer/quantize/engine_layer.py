"""One layer between our plain form and the tensors of the published engine (Nunchaku v2 names).

The engine wants rows and columns in multiples of 128 and ranks in multiples of 16: sides are zero-padded,
scales, smoothing and bias padded with 1, and cut off again on reading.
"""

import torch
from torch import Tensor

from fewer.core.errors import ConfigError, FileError
from fewer.quantize import packing
from fewer.quantize.engine_checks import check_modulation, check_parts, layer_facts
from fewer.quantize.formats import Scales
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.packing import pad_matrix, padded

_SIXTEEN = (torch.bfloat16, torch.float16)


def pack_layer(layer: QuantizedLayer, name: str, *, pad: bool = True) -> dict[str, Tensor]:
    """qweight, wscales, smooth_factor, proj_down, proj_up (and bias, wcscales, wtscale) as the engine
    stores them.

    `pad=False` refuses sizes that would need padding. Raises `ConfigError` naming the layer for formats that
    the engine does not have.
    """
    if layer.format not in ("int4", "nvfp4"):
        raise ConfigError(
            f"layer {name!r} is {layer.format}, which this file format cannot hold (int4, nvfp4)"
        )
    out, dim = layer.shape
    rows, columns, ranks = (
        padded(out, packing.ROWS), padded(dim, packing.COLUMNS), padded(layer.rank, packing.RANKS),
    )  # fmt: skip
    if not pad and (rows, columns, ranks) != (out, dim, layer.rank):
        raise ConfigError(
            f"layer {name!r} is {out} x {dim} with rank {layer.rank}; "
            f"this file format takes multiples of 128 and ranks of 16"
        )
    dtype = sixteen_bit(layer)
    codes = pad_matrix(layer.codes, rows, columns)
    scales = pad_matrix(layer.scales.group, rows, columns // layer.form.group, 1.0)
    smooth = torch.ones(dim) if layer.smooth is None else layer.smooth
    tensors = {
        "qweight": packing.pack_codes(codes),
        "smooth_factor": _vector(smooth, columns, dtype),
        "smooth_factor_orig": _vector(smooth, columns, dtype),
    }
    down = torch.zeros(0, dim) if layer.down is None else layer.down
    up = torch.zeros(out, 0) if layer.up is None else layer.up
    tensors["proj_down"] = packing.pack_down(pad_matrix(down.to(dtype), ranks, columns))
    tensors["proj_up"] = packing.pack_up(pad_matrix(up.to(dtype), rows, ranks))
    if layer.bias is not None:
        tensors["bias"] = _vector(layer.bias, rows, dtype)
    if layer.format == "nvfp4":
        assert layer.scales.channel is not None
        tensors["wscales"] = packing.pack_e4m3_scales(scales)
        tensors["wcscales"] = _vector(layer.scales.channel, rows, dtype)
        tensors["wtscale"] = torch.ones(1, dtype=dtype)
    else:
        tensors["wscales"] = packing.pack_scales(scales.to(dtype))
    return tensors


def unpack_layer(tensors: dict[str, Tensor], facts: dict[str, object], name: str) -> QuantizedLayer:
    """The inverse of `pack_layer`; `facts` has format, shape, rank and flags. Raises `FileError` naming
    the layer.
    """
    form, out, dim, rank = layer_facts(facts, name)
    rows, columns, ranks = (
        padded(out, packing.ROWS),
        padded(dim, packing.COLUMNS),
        padded(rank, packing.RANKS),
    )
    group = 16 if form == "nvfp4" else 64
    expected = {
        "qweight": (rows, columns // 2), "wscales": (columns // group, rows), "smooth_factor": (columns,),
        "proj_down": (columns, ranks), "proj_up": (rows, ranks), "bias": (rows,),
        "smooth_factor_orig": (columns,), "wcscales": (rows,), "wtscale": (),
    }  # fmt: skip
    check_parts(tensors, expected, {"bias", "smooth_factor_orig", "wcscales", "wtscale"}, form, name)
    codes = packing.unpack_codes(tensors["qweight"].reshape(expected["qweight"]))
    padded_dim = padded(dim, group)
    wscales, channel = tensors["wscales"].reshape(expected["wscales"]), None
    if form == "nvfp4":
        scales = packing.unpack_e4m3_scales(wscales)
        channel = torch.ones(rows)
        if "wcscales" in tensors:
            channel = packing.unpack_vector(tensors["wcscales"].reshape(-1)).float()
        if "wtscale" in tensors:
            channel = channel * tensors["wtscale"].float().reshape(())
        channel = channel[:out]
    else:
        codes, scales = packing.signed(codes), packing.unpack_scales(wscales)
    bias = packing.unpack_vector(tensors["bias"].reshape(-1))[:out] if "bias" in tensors else None
    down, up = (tensors[part].reshape(expected[part]) for part in ("proj_down", "proj_up"))
    return QuantizedLayer(
        format=form,  # pyright: ignore
        shape=(out, dim),
        codes=codes[:out, :padded_dim].contiguous(),
        scales=Scales(scales[:out, : padded_dim // group].contiguous(), channel),
        smooth=packing.unpack_vector(tensors["smooth_factor"].reshape(-1))[:dim].contiguous(),
        down=packing.unpack_down(down)[:rank, :dim].contiguous() if rank else None,
        up=packing.unpack_up(up)[:out, :rank].contiguous() if rank else None,
        bias=bias,
        unsigned=bool(facts.get("unsigned", False)),
        convolution=bool(facts.get("convolution", False)),
    )


def pack_modulation(layer: QuantizedLayer, splits: int, name: str) -> dict[str, Tensor]:
    """A w4a16 layer as the engine stores it: unsigned values with zero points, rows interleaved for
    `splits` chunks.

    With splits (6: shift, scale, gate twice; 3: shift, scale, gate) 1 is added to the bias of the scale
    chunks.
    """
    out, dim = layer.shape
    if out % 4 or dim % 64 or layer.codes.shape[1] != dim:
        raise ConfigError(f"layer {name!r} is {out} x {dim}; w4a16 files take multiples of 4 x 64")
    dtype = sixteen_bit(layer)
    scales = packing.interleave(layer.scales.group.to(dtype), splits).mT.contiguous()
    tensors = {
        "qweight": packing.pack_weight_only(packing.interleave((layer.codes + 7).to(torch.int8), splits)),
        "wscales": scales,
        "wzeros": -7 * scales,
    }
    if layer.bias is not None:
        bias = layer.bias.to(dtype) + _ones(splits, out).to(dtype)
        tensors["bias"] = packing.interleave(bias, splits)
    return tensors


def unpack_modulation(tensors: dict[str, Tensor], splits: int, name: str) -> QuantizedLayer:
    """The inverse of `pack_modulation`. Raises `FileError` naming the layer."""
    check_modulation(tensors, splits, name)
    codes = packing.deinterleave(packing.unpack_weight_only(tensors["qweight"]), splits)
    scales = packing.deinterleave(tensors["wscales"].mT.contiguous(), splits)
    zeros = packing.deinterleave(tensors["wzeros"].mT.contiguous(), splits)
    if not torch.allclose(zeros.float(), -7 * scales.float(), rtol=0.01, atol=1e-6):
        raise FileError(f"layer {name!r} has zero points other than -7 scales, which is not supported")
    bias = tensors.get("bias")
    if bias is not None:
        bias = packing.deinterleave(bias, splits) - _ones(splits, len(bias)).to(bias.dtype)
    return QuantizedLayer(
        format="w4a16",
        shape=(codes.shape[0], codes.shape[1]),
        codes=codes - 7,
        scales=Scales(scales),
        bias=bias,
    )


def join_rows(layers: list[QuantizedLayer]) -> QuantizedLayer:
    """Layers that share input, smoothing and down projection, below each other (q, k, v)."""
    first = layers[0]
    cat = lambda tensors: None if tensors[0] is None else torch.cat(tensors)  # noqa: E731
    if first.scales.group.dtype == torch.float8_e4m3fn:
        group = torch.cat([layer.scales.group.view(torch.uint8) for layer in layers]).view(
            torch.float8_e4m3fn
        )
    else:
        group = torch.cat([layer.scales.group for layer in layers])
    return QuantizedLayer(
        format=first.format,
        shape=(sum(layer.shape[0] for layer in layers), first.shape[1]),
        codes=torch.cat([layer.codes for layer in layers]),
        scales=Scales(group, cat([layer.scales.channel for layer in layers])),
        smooth=first.smooth,
        down=first.down,
        up=cat([layer.up for layer in layers]),
        bias=cat([layer.bias for layer in layers]),
        unsigned=first.unsigned,
    )


def split_rows(layer: QuantizedLayer, sizes: list[int]) -> list[QuantizedLayer]:
    """The inverse of `join_rows`."""
    if len(sizes) == 1:
        return [layer]
    pieces, row = [], 0
    for size in sizes:
        rows = slice(row, row + size)
        row += size
        cut = lambda tensor, rows=rows: None if tensor is None else tensor[rows].clone()  # noqa: E731
        pieces.append(
            QuantizedLayer(
                format=layer.format,
                shape=(size, layer.shape[1]),
                codes=layer.codes[rows].clone(),
                scales=Scales(layer.scales.group[rows].clone(), cut(layer.scales.channel)),
                smooth=layer.smooth,
                down=layer.down,
                up=cut(layer.up),
                bias=cut(layer.bias),
                unsigned=layer.unsigned,
            )
        )
    return pieces


def sixteen_bit(layer: QuantizedLayer) -> torch.dtype:
    """The 16-bit format a layer is written in: its scales' own where they have one."""
    for tensor in (layer.scales.group, layer.up, layer.bias, layer.smooth):
        if tensor is not None and tensor.dtype in _SIXTEEN:
            return tensor.dtype
    return torch.bfloat16


def _vector(vector: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return packing.pack_vector(pad_matrix(vector.to(dtype)[None], 1, size, 1.0)[0])


def _ones(splits: int, size: int) -> Tensor:
    """1 in the rows of the scale chunks (1 and 4 of six, 1 of three)."""
    chunk = torch.arange(size) // (size // splits)
    return ((chunk % 3 == 1) & (splits > 1)).float()
