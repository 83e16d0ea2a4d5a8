"""deepcompressor's raw output: model, scale, smooth and branch, before any packing.

The weights are the dequantized residuals in 16 bits; codes are recovered by dividing by the scales. The
original files are pickles (`model.pt` ...): `fewer convert` sends them through its one door and hands over
the same names in
safetensors files, which is also what is written here. Smoothed quantities: residual and branch act on x /
lambda.
"""

from pathlib import Path

import torch
from torch import Tensor

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.quantize.checkpoint import QuantizedCheckpoint
from fewer.quantize.formats import FORMATS, GELU_SHIFT, Scales, decode_weight, nearest_codes, pad_to
from fewer.quantize.layer import QuantizedLayer

FILES = ("model", "scale", "smooth", "branch")


def write_folder(checkpoint: QuantizedCheckpoint, folder: Path) -> None:
    """Writes model, scale, smooth and branch as safetensors."""
    checkpoint.uniform("a deepcompressor folder", "int4", "nvfp4")
    model, scale, smooth, branch = dict(checkpoint.plain), {}, {}, {}
    for name, layer in checkpoint.layers.items():
        residual = decode_weight(layer.codes, layer.scales, layer.form, layer.shape[1])
        lam = torch.ones(layer.shape[1]) if layer.smooth is None else layer.smooth.float()
        model[f"{name}.weight"] = residual[:, :, None, None] if layer.convolution else residual
        if layer.bias is not None:
            model[f"{name}.bias"] = _raw_bias(layer)
        groups = layer.scales.group.float()[:, None, :, None]
        if layer.scales.channel is None:
            scale[f"{name}.weight.scale.0"] = groups
        else:
            scale[f"{name}.weight.scale.0"] = layer.scales.channel[:, None, None, None]
            scale[f"{name}.weight.scale.1"] = groups
        if layer.format != "w4a16":
            smooth[name] = lam
        if layer.down is not None and layer.up is not None:
            branch[f"{name}.a.weight"] = layer.down.float() * lam
            branch[f"{name}.b.weight"] = layer.up.float()
    for file, tensors in zip(FILES, (model, scale, smooth, branch), strict=True):
        write_tensors(folder / f"{file}.safetensors", tensors)


def read_folder(folder: Path, unsigned: frozenset[str] = frozenset()) -> QuantizedCheckpoint:
    """Reads the four files; `unsigned` names the layers after GELU. Raises `FileError` naming an
    incomplete layer.
    """
    model, scale, smooth, branch = (
        read_tensors(folder / f"{file}.safetensors") if (folder / f"{file}.safetensors").exists() else {}
        for file in FILES
    )
    if not model or not scale:
        raise FileError(f"{folder.name!r} has no model and scale files of deepcompressor", missing=True)
    layers: dict[str, QuantizedLayer] = {}
    for key in [name for name in scale if name.endswith(".weight.scale.0")]:
        name = key.removesuffix(".weight.scale.0")
        if f"{name}.weight" not in model:
            raise FileError(f"layer {name!r} has scales, but the model file has no weight for it")
        layers[name] = _layer(name, model, scale, smooth, branch, name in unsigned)
    taken = {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    return QuantizedCheckpoint(layers, {name: tensor for name, tensor in model.items() if name not in taken})


def _layer(
    name: str,
    model: dict[str, Tensor],
    scale: dict[str, Tensor],
    smooth: dict[str, Tensor],
    branch: dict[str, Tensor],
    unsigned: bool,
) -> QuantizedLayer:
    weight = model[f"{name}.weight"]
    convolution, weight = weight.ndim == 4, weight.flatten(1).float()
    out, dim = weight.shape
    first, second = scale[f"{name}.weight.scale.0"].float(), scale.get(f"{name}.weight.scale.1")
    form = FORMATS["w4a16" if name not in smooth else "int4" if second is None else "nvfp4"]
    groups = first.reshape(out, -1) if second is None else second.float().reshape(out, -1)
    if groups.shape[1] != -(-dim // form.group):
        raise FileError(
            f"layer {name!r}: {groups.shape[1]} scales a row do not fit {dim} inputs of {form.name}"
        )
    if second is None:
        scales = Scales(groups.to(torch.bfloat16))
    else:
        channel = first.reshape(-1).expand(out) if first.numel() == 1 else first.reshape(out)
        scales = Scales(groups.to(torch.float8_e4m3fn), channel.clone())
    step = scales.effective().repeat_interleave(form.group, dim=1)
    codes = nearest_codes(pad_to(weight, form.group) / step, form)
    lam, down, up = smooth.get(name), branch.get(f"{name}.a.weight"), branch.get(f"{name}.b.weight")
    layer = QuantizedLayer(
        format=form.name,
        shape=(out, dim),
        codes=codes,
        scales=scales,
        smooth=None if lam is None else lam.to(torch.bfloat16),
        down=None
        if down is None
        else (down.float() / (1 if lam is None else lam.float())).to(torch.bfloat16),
        up=None if up is None else up.to(torch.bfloat16),
        bias=model.get(f"{name}.bias"),
        unsigned=unsigned,
        convolution=convolution,
    )
    if unsigned and layer.bias is not None:
        layer.bias = (layer.bias.float() + GELU_SHIFT * _branch_sum(layer)).to(torch.bfloat16)
    return layer


def _raw_bias(layer: QuantizedLayer) -> Tensor:
    """Theirs subtracts the shift through the whole weight; the engine's leaves the branch unshifted."""
    assert layer.bias is not None
    return layer.bias.float() - GELU_SHIFT * _branch_sum(layer) if layer.unsigned else layer.bias.float()


def _branch_sum(layer: QuantizedLayer) -> Tensor:
    if layer.up is None or layer.down is None:
        return torch.zeros(layer.shape[0])
    return layer.up.float() @ layer.down.float().sum(dim=1)
