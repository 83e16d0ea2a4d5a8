"""deepcompressor's raw output: model, scale, smooth and branch, before any packing.

The weights are the dequantized residuals in 16 bits; codes are recovered by dividing by the scales. The
original files are pickles (`model.pt` ...): `fewer convert` sends them through its one door and hands over
the same names in
safetensors files, which is also what is written here. Smoothed quantities: residual and branch act on x /
lambda.

What layers share is stored once: q, k and v have their smoothing and one joint branch under to_q (add_k_proj
in the text stream), FLUX's proj_mlp is smoothed as to_q is, to_add_out as to_out.0. A layer after GELU
stands under `.linear` beside its `.shift`. Where `proj.fuse_when_possible` is not false, the smoothing of
attention's output projections has been folded into the layer before: nothing is divided at run time.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.quantize.checkpoint import QuantizedCheckpoint
from fewer.quantize.engine_checks import check_finite
from fewer.quantize.formats import FORMATS, GELU_SHIFT, Format, Scales, decode_weight, nearest_codes, pad_to
from fewer.quantize.layer import QuantizedLayer

FILES = ("model", "scale", "smooth", "branch")
FUSED = "proj.fuse_when_possible"
_JOINT = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
_NEIGHBOURS = {
    "to_k": "to_q", "to_v": "to_q", "add_q_proj": "add_k_proj", "add_v_proj": "add_k_proj",
    "attn.to_add_out": "attn.to_out.0", "proj_mlp": "attn.to_q",
}  # fmt: skip
_PIECES = {"proj_out.attention": "proj_out.linears.0", "proj_out.mlp": "proj_out.linears.1"}
_AFTER_ATTENTION = re.compile(r".*\.(to_out\.0|to_add_out|proj_out\.linears\.0)")


def write_folder(checkpoint: QuantizedCheckpoint, folder: Path) -> None:
    """Writes model, scale, smooth and branch as safetensors."""
    checkpoint.uniform("a deepcompressor folder", "int4", "nvfp4")
    model, scale, smooth, branch = dict(checkpoint.plain), {}, {FUSED: torch.tensor(False)}, {}
    for own, layer in checkpoint.layers.items():
        name = _theirs(own, layer.unsigned)
        residual = decode_weight(layer.codes, layer.scales, layer.form, layer.shape[1])
        lam = torch.ones(layer.shape[1]) if layer.smooth is None else layer.smooth.float()
        model[f"{name}.weight"] = residual[:, :, None, None] if layer.convolution else residual
        if layer.bias is not None:
            model[f"{name}.bias"] = _raw_bias(layer)
        if layer.unsigned:
            model[f"{name.removesuffix('.linear')}.shift"] = torch.tensor(GELU_SHIFT)
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
    _join_branches(branch)
    for file, tensors in zip(FILES, (model, scale, smooth, branch), strict=True):
        write_tensors(folder / f"{file}.safetensors", tensors)


def _join_branches(branch: dict[str, Tensor]) -> None:
    """One branch for q, k and v where they have the same down projection."""
    for key in [name for name in branch if name.endswith((".to_q.a.weight", ".add_q_proj.a.weight"))]:
        parent, _, last = key.removesuffix(".a.weight").rpartition(".")
        names = next(names for names in _JOINT if last in names)
        downs = [branch.get(f"{parent}.{name}.a.weight") for name in names]
        if any(down is None or not torch.equal(down, branch[key]) for down in downs):
            continue
        ups = torch.cat([branch.pop(f"{parent}.{name}.b.weight") for name in names])
        down = branch[key]
        for name in names:
            del branch[f"{parent}.{name}.a.weight"]
        home = f"{parent}.{_NEIGHBOURS.get(last, last)}"
        branch |= {f"{home}.a.weight": down, f"{home}.b.weight": ups}


def read_folder(folder: Path) -> QuantizedCheckpoint:
    """Reads the four files. Raises `FileError` naming an incomplete layer."""
    files = {
        file: read_tensors(folder / f"{file}.safetensors")
        if (folder / f"{file}.safetensors").exists()
        else {}
        for file in FILES
    }
    model, scale = files["model"], files["scale"]
    if not model or not scale:
        raise FileError(f"{folder.name!r} has no model and scale files of deepcompressor", missing=True)
    names = [key.removesuffix(".weight.scale.0") for key in scale if key.endswith(".weight.scale.0")]
    for name in names:
        if f"{name}.weight" not in model:
            raise FileError(f"layer {name!r} has scales, but the model file has no weight for it")
    layers = {_ours(name, model): _layer(name, files) for name in names}
    taken = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    taken |= {f"{name.removesuffix('.linear')}.shift" for name in names}
    return QuantizedCheckpoint(layers, {name: tensor for name, tensor in model.items() if name not in taken})


def _layer(name: str, files: dict[str, dict[str, Tensor]]) -> QuantizedLayer:
    model, scale, smooth = files["model"], files["scale"], files["smooth"]
    weight = model[f"{name}.weight"]
    if weight.ndim not in (2, 4) or not weight.numel() or not weight.is_floating_point():
        raise FileError(f"layer {name!r} has a weight of {tuple(weight.shape)}, which is no linear layer's")
    convolution, weight = weight.ndim == 4, weight.flatten(1).float()
    out, dim = weight.shape
    lam = smooth.get(name, smooth.get(_neighbour(name)))
    down, up = _branch(name, files)
    _check(
        name,
        (out, dim),
        {"weight": weight, "smoothing": lam, "a": down, "b": up, "bias": model.get(f"{name}.bias")},
    )
    first, second = scale[f"{name}.weight.scale.0"].float(), scale.get(f"{name}.weight.scale.1")
    plain = lam is None and down is None
    form = FORMATS["w4a16" if plain else "int4" if second is None else "nvfp4"]
    scales = _scales(name, form, (out, dim), first, second)
    step = scales.effective().repeat_interleave(form.group, dim=1)
    codes = nearest_codes(pad_to(weight, form.group) / step, form)
    if lam is not None and _AFTER_ATTENTION.fullmatch(name) and bool(smooth.get(FUSED, torch.tensor(True))):
        lam = None  # the layer before divides
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
        unsigned=_shifted(name, model),
        convolution=convolution,
    )
    if layer.unsigned and layer.bias is not None:
        layer.bias = (layer.bias.float() + GELU_SHIFT * _branch_sum(layer)).to(torch.bfloat16)
    return layer


def _check(name: str, shape: tuple[int, int], parts: dict[str, Tensor | None]) -> None:
    """Sizes and values of what belongs to a layer. Raises `FileError` naming it."""
    out, dim = shape
    down = parts["a"]
    rank = len(down) if down is not None and down.ndim == 2 else 0
    sizes = {"weight": shape, "smoothing": (dim,), "a": (rank, dim), "b": (out, rank), "bias": (out,)}
    for part, tensor in parts.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != sizes[part] or not tensor.is_floating_point():
            raise FileError(
                f"layer {name!r}: its {part} is {tuple(tensor.shape)} of {tensor.dtype}, not {sizes[part]}"
            )
        check_finite(tensor, part, name)


def _scales(name: str, form: Format, shape: tuple[int, int], first: Tensor, second: Tensor | None) -> Scales:
    out, dim = shape
    groups = first if second is None else second.float()
    if groups.numel() != out * -(-dim // form.group):
        raise FileError(f"layer {name!r}: {groups.numel()} scales do not fit {out} x {dim} of {form.name}")
    groups = groups.reshape(out, -1)
    check_finite(groups, "scales", name)
    if second is None:
        return Scales(groups.to(torch.bfloat16))
    if first.numel() not in (1, out):
        raise FileError(f"layer {name!r}: {first.numel()} channel scales do not fit {out} outputs")
    check_finite(first, "channel scales", name)
    channel = first.reshape(-1).expand(out) if first.numel() == 1 else first.reshape(out)
    return Scales(groups.to(torch.float8_e4m3fn), channel.clone())


def _branch(name: str, files: dict[str, dict[str, Tensor]]) -> tuple[Tensor | None, Tensor | None]:
    """(down, up) of a layer: its own, or its rows of the joint branch of q, k and v."""
    parent, _, last = name.rpartition(".")
    joint = next((names for names in _JOINT if last in names), None)
    rows = len(files["model"][f"{name}.weight"])
    home = name if joint is None else f"{parent}.{_NEIGHBOURS.get(last, last)}"
    for source in dict.fromkeys((name, home)):
        down, up = (files["branch"].get(f"{source}.{part}.weight") for part in ("a", "b"))
        if down is None or up is None:
            continue
        if up.ndim != 2:
            raise FileError(f"layer {name!r}: its b is {tuple(up.shape)}, not a matrix")
        if len(up) == rows and (source == name or joint is None):
            return down, up
        sizes = [len(files["model"].get(f"{parent}.{other}.weight", ())) for other in joint or ()]
        if joint is None or sum(sizes) != len(up):
            raise FileError(f"layer {name!r}: its branch has {len(up)} outputs, the weight {rows}")
        begin = sum(sizes[: joint.index(last)])
        return down, up[begin : begin + rows]
    return None, None


def _theirs(name: str, unsigned: bool) -> str:
    for ours, theirs in _PIECES.items():
        if name.endswith(ours):
            name = name.removesuffix(ours) + theirs
    return f"{name}.linear" if unsigned else name


def _ours(name: str, model: dict[str, Tensor]) -> str:
    name = name.removesuffix(".linear") if _shifted(name, model) else name
    for ours, theirs in _PIECES.items():
        if name.endswith(theirs):
            return name.removesuffix(theirs) + ours
    return name


def _shifted(name: str, model: dict[str, Tensor]) -> bool:
    return name.endswith(".linear") and f"{name.removesuffix('.linear')}.shift" in model


def _neighbour(name: str) -> str:
    """The layer whose smoothing scales stand for this one's."""
    for last, other in _NEIGHBOURS.items():
        if name.endswith(f".{last}"):
            return name.removesuffix(last) + other
    return name


def _raw_bias(layer: QuantizedLayer) -> Tensor:
    """Theirs subtracts the shift through the whole weight; the engine's leaves the branch unshifted."""
    assert layer.bias is not None
    return layer.bias.float() - GELU_SHIFT * _branch_sum(layer) if layer.unsigned else layer.bias.float()


def _branch_sum(layer: QuantizedLayer) -> Tensor:
    if layer.up is None or layer.down is None:
        return torch.zeros(layer.shape[0])
    return layer.up.float() @ layer.down.float().sum(dim=1)
