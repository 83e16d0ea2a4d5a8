"""Tensor names of the authors' code (efficientvit, DC-Gen) and ours, which are diffusers'.

To us: substring rules in a fixed order (spec §4.2), which tolerate wrappers that come and go. From us:
the exact native name, which depends on whether a layer sits inside a residual wrapper.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from fewer.core.errors import FileError
from fewer.generate.autoencoder.config import DCAutoencoderConfig

Value = TypeVar("Value")

_RULES = (
    ("main.", ""),
    ("op_list.", ""),
    ("context_module", "attn"),
    ("local_module", "conv_out"),
    ("depth_conv.conv", "conv_depth"),
    ("inverted_conv.conv", "conv_inverted"),
    ("point_conv.conv", "conv_point"),
    ("point_conv.norm", "norm"),
    ("conv.conv.", "conv."),
    ("conv1.conv", "conv1"),
    ("conv2.conv", "conv2"),
    ("conv2.norm", "norm"),
    ("proj.norm", "norm_out"),
    ("encoder.project_out.0.conv", "encoder.conv_out"),
    ("encoder.stages", "encoder.down_blocks"),
    ("decoder.project_in.conv", "decoder.conv_in"),
    ("decoder.project_out.0", "decoder.norm_out"),
    ("decoder.stages", "decoder.up_blocks"),
)


def is_native(names: Iterable[str]) -> bool:
    """Whether these are names of the authors' code."""
    return any(
        name.startswith(("encoder.project_in.", "decoder.project_in.", "encoder.stages.")) for name in names
    )


def split_native(values: Mapping[str, Value], part: Callable[[Value, int], Value]) -> dict[str, Value]:
    """Native names to ours, for tensors or for their shapes.

    `part(value, i)` gives third i of a joint q/k/v projection as a matrix, and the whole as a matrix for
    i = -1. Raises `FileError` if two native names become one.
    """
    empty_first = {
        side: not any(name.startswith(f"{side}.stages.0.") for name in values)
        for side in ("encoder", "decoder")
    }
    ours: dict[str, Value] = {}
    for native, value in values.items():
        name = _rename(native, empty_first)
        if name.endswith(".qkv.conv.weight"):
            stem = name.removesuffix("qkv.conv.weight")
            new = {f"{stem}to_{letter}.weight": part(value, index) for index, letter in enumerate("qkv")}
        elif name.endswith(".proj.conv.weight"):
            new = {name.removesuffix("proj.conv.weight") + "to_out.weight": part(value, -1)}
        else:
            new = {name: value}
        if clash := new.keys() & ours.keys():
            raise FileError(f"two native tensors stand for {min(clash)!r}; the file mixes layouts")
        ours.update(new)
    return ours


def _rename(name: str, empty_first: Mapping[str, bool]) -> str:
    for old, new in _RULES:
        name = name.replace(old, new)
    name = re.sub(r"aggreg\.(\d+)\.0", r"to_qkv_multiscale.\1.proj_in", name)
    name = re.sub(r"aggreg\.(\d+)\.1", r"to_qkv_multiscale.\1.proj_out", name)
    # With an empty first stage the outermost convolutions are up and down blocks, one level deeper.
    first = "encoder.conv_in.conv" if empty_first["encoder"] else "encoder.conv_in"
    last = "decoder.conv_out.conv" if empty_first["decoder"] else "decoder.conv_out"
    return name.replace("encoder.project_in.conv", first).replace("decoder.project_out.2.conv", last)


def to_native(tensors: Mapping[str, Tensor], config: DCAutoencoderConfig) -> dict[str, Tensor]:
    """Our names to native ones: q/k/v joined again, matrices as 1x1 convolutions."""
    native: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(("attn.to_k.weight", "attn.to_v.weight")):
            continue
        if name.endswith("attn.to_q.weight"):
            stem = name.removesuffix("to_q.weight")
            tensor = torch.cat([tensors[f"{stem}to_{letter}.weight"] for letter in "qkv"])
        if name.endswith(("attn.to_q.weight", "attn.to_out.weight")):
            tensor = tensor[:, :, None, None]
        native[native_name(name, config)] = tensor
    return native


def native_name(name: str, config: DCAutoencoderConfig) -> str:
    """One name of ours (`to_q` stands for the joint projection) as the authors' code spells it."""
    side, part, rest = name.split(".", 2)
    nested_down = "conv.conv" if config.downsample_block_type == "pixel_unshuffle" else "conv"
    if part == "conv_in" and side == "encoder":
        inner = rest.startswith("conv.")
        return f"encoder.project_in.{nested_down if inner else 'conv'}.{rest.removeprefix('conv.')}"
    if part == "conv_out" and side == "encoder":
        return f"encoder.project_out.{'main.' if config.encoder_out_shortcut else ''}op_list.0.conv.{rest}"
    if part == "conv_in":
        return f"decoder.project_in.{'main.' if config.decoder_in_shortcut else ''}conv.{rest}"
    if part == "norm_out":
        return f"decoder.project_out.op_list.0.{rest}"
    if part == "conv_out":
        return f"decoder.project_out.op_list.2.conv.{rest}"
    stage, layer, inside = rest.split(".", 2)
    change = f"main.{nested_down if side == 'encoder' else 'conv.conv'}."
    rules = (
        (r"^attn\.to_q\.", "context_module.main.qkv.conv."),
        (r"^attn\.to_qkv_multiscale\.(\d+)\.proj_in\.", r"context_module.main.aggreg.\1.0."),
        (r"^attn\.to_qkv_multiscale\.(\d+)\.proj_out\.", r"context_module.main.aggreg.\1.1."),
        (r"^attn\.to_out\.", "context_module.main.proj.conv."),
        (r"^attn\.norm_out\.", "context_module.main.proj.norm."),
        (r"^conv_out\.conv_(inverted|depth|point)\.", r"local_module.main.\1_conv.conv."),
        (r"^conv_out\.norm\.", "local_module.main.point_conv.norm."),
        (r"^conv([12])\.", r"main.conv\1.conv."),
        (r"^norm\.", "main.conv2.norm."),
        (r"^conv\.", change),
    )
    for pattern, replacement in rules:
        inside, changed = re.subn(pattern, replacement, inside)
        if changed:
            break
    return f"{side}.stages.{stage}.op_list.{layer}.{inside}"
