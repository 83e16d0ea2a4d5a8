"""Nunchaku's own files: one safetensors file with everything in its metadata, or the legacy folder of two.

q, k and v are stored as one layer, FLUX's single blocks under names of their own, and modulation layers
interleaved (channel by channel, with 1 added to the bias of the scale chunks). What the file does not say
(true sizes
of padded layers, which inputs are unsigned, 1x1 convolutions) goes into a metadata entry of ours and is
guessed
without it.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewer.core.errors import FileError
from fewer.core.files import parse_json, read_json, write_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.quantize.checkpoint import QuantizedCheckpoint
from fewer.quantize.engine_checks import LARGEST, packed_shape
from fewer.quantize.engine_layer import (
    join_rows,
    pack_layer,
    pack_modulation,
    split_rows,
    unpack_layer,
    unpack_modulation,
)
from fewer.quantize.layer import QuantizedLayer

EXTRA = "fewer_layers"  # our metadata entry
MODEL_CLASSES = {"FluxTransformer2DModel": "NunchakuFluxTransformer2dModel"}
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "add_qkv_proj": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
_SINGLE = {  # FLUX single blocks: our name -> theirs
    "proj_mlp": "mlp_fc1",
    "proj_out.mlp": "mlp_fc2",
    "proj_out.attention": "attn.to_out",
}
_LEGACY_LAYERS = {  # v2 name -> legacy name, joint blocks first
    "attn.to_qkv": "qkv_proj", "attn.add_qkv_proj": "qkv_proj_context", "attn.to_out.0": "out_proj",
    "attn.to_add_out": "out_proj_context", "ff.net.0.proj": "mlp_fc1", "ff.net.2": "mlp_fc2",
    "ff_context.net.0.proj": "mlp_context_fc1", "ff_context.net.2": "mlp_context_fc2",
    "attn.norm_q": "norm_q", "attn.norm_k": "norm_k", "attn.norm_added_q": "norm_added_q",
    "attn.norm_added_k": "norm_added_k", "attn.to_out": "out_proj",
}  # fmt: skip
_LEGACY_TENSORS = {
    "smooth_factor": "smooth", "smooth_factor_orig": "smooth_orig", "proj_down": "lora_down",
    "proj_up": "lora_up",
}  # fmt: skip
_BLOCK = re.compile(r"((?:single_)?transformer_blocks\.\d+)\.(.+)")
_MODULATION = {"norm1.linear": 6, "norm1_context.linear": 6, "norm.linear": 3}
_PRECISION = {"int4": "int4", "nvfp4": "fp4"}


def file_name(checkpoint: QuantizedCheckpoint, model: str) -> str:
    """`svdq-{int4|fp4}_r{rank}-{model}.safetensors`, the name users look for."""
    form, rank = checkpoint.uniform("a Nunchaku file", "int4", "nvfp4")
    return f"svdq-{_PRECISION[form]}_r{rank}-{model}.safetensors"


def write_file(checkpoint: QuantizedCheckpoint, path: Path) -> None:
    """Writes the single-file form. Raises `ConfigError` for formats the engine does not have."""
    tensors, metadata = _tensors(checkpoint)
    write_tensors(path, tensors, metadata)


def write_legacy(checkpoint: QuantizedCheckpoint, folder: Path) -> None:
    """Writes the legacy folder: transformer_blocks, unquantized_layers, config.json, comfy_config.json."""
    tensors, metadata = _tensors(checkpoint)
    renamed = {_legacy(name): tensor for name, tensor in tensors.items()}
    inside = {name: tensor for name, tensor in renamed.items() if _BLOCK.match(name)}
    outside = {name: tensor for name, tensor in renamed.items() if name not in inside}
    write_tensors(folder / "transformer_blocks.safetensors", inside, metadata)
    write_tensors(folder / "unquantized_layers.safetensors", outside)
    write_json(folder / "comfy_config.json", json.loads(metadata["comfy_config"]))
    write_json(folder / "config.json", checkpoint.config)


def read_file(path: Path) -> QuantizedCheckpoint:
    """Reads the single-file form. Raises `FileError` naming the layer that is incomplete."""
    _, metadata = tensor_header(path)
    return _checkpoint(read_tensors(path), metadata, _json(metadata, "config", path))


def read_legacy(folder: Path) -> QuantizedCheckpoint:
    """Reads the legacy folder."""
    blocks = folder / "transformer_blocks.safetensors"
    _, metadata = tensor_header(blocks)
    tensors = read_tensors(blocks) | read_tensors(folder / "unquantized_layers.safetensors")
    config = read_json(folder / "config.json")
    return _checkpoint({_modern(name): tensor for name, tensor in tensors.items()}, metadata, config)


def _tensors(checkpoint: QuantizedCheckpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    form, rank = checkpoint.uniform("a Nunchaku file", "int4", "nvfp4")
    layers, facts = _fuse(checkpoint.layers)
    tensors = dict(checkpoint.plain)
    for name, layer in layers.items():
        if layer.format == "w4a16":
            own = pack_modulation(layer, _chunks(name, *layer.shape), name)
        else:
            own = pack_layer(layer, name)
        tensors |= {f"{name}.{part}": tensor for part, tensor in own.items()}
    group = 64 if form == "int4" else 16
    scale = None if form == "int4" else "fp8_e4m3_nan"
    code = "int4" if form == "int4" else "fp4_e2m1_all"
    number = {"dtype": code, "scale_dtype": scale, "group_size": group}
    settings = {
        "method": "svdquant",
        "weight": number | {"scale_dtype": [None, scale] if scale else None},
        "activation": number,
        "rank": rank,
    }
    metadata = {
        "config": json.dumps(checkpoint.config),
        "comfy_config": json.dumps({"model_class": checkpoint.model_class, "model_config": {}}),
        "model_class": MODEL_CLASSES.get(checkpoint.model_class, checkpoint.model_class),
        "quantization_config": json.dumps(settings),
        EXTRA: json.dumps(facts),
    }
    return tensors, metadata


def _fuse(
    layers: dict[str, QuantizedLayer],
) -> tuple[dict[str, QuantizedLayer], dict[str, dict[str, object]]]:
    """Layers under the file's names with q, k, v joined, and our facts of each (sizes, flags, where it
    came from).
    """
    fused: dict[str, QuantizedLayer] = {}
    facts: dict[str, dict[str, object]] = {}
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        target = next((joined for joined, parts in FUSED.items() if last in parts), None)
        members = [f"{parent}.{part}" for part in FUSED[target]] if target else [name]
        if target and all(member in layers for member in members) and _joinable([layers[m] for m in members]):
            if name != members[0]:
                continue
            fused[f"{parent}.{target}"] = join_rows([layers[member] for member in members])
            stored = f"{parent}.{target}"
        else:
            members, stored = [name], _theirs(name)
            fused[stored] = layer
        facts[stored] = {
            "members": members,
            "rows": [layers[member].shape[0] for member in members],
            "facts": layer.facts(),
        }
    return fused, facts


def _chunks(name: str, out: int, dim: int) -> int:
    """How many chunks of a modulation layer's rows are interleaved: those of FLUX, which are as wide as its
    input.
    """
    chunks = _MODULATION.get(name.partition(".")[2].partition(".")[2], 1)
    return chunks if out == chunks * dim else 1


def _joinable(members: list[QuantizedLayer]) -> bool:
    first = members[0]
    same = lambda a, b: (a is None) == (b is None) and (a is None or torch.equal(a, b))  # noqa: E731
    return all(
        same(member.smooth, first.smooth)
        and same(member.down, first.down)
        and (member.bias is None) == (first.bias is None)
        and member.format == first.format
        for member in members
    )


def _checkpoint(
    tensors: dict[str, Tensor], metadata: dict[str, str], config: dict[str, object]
) -> QuantizedCheckpoint:
    facts = _own_facts(metadata[EXTRA]) if EXTRA in metadata else _guess(tensors)
    layers: dict[str, QuantizedLayer] = {}
    taken: set[str] = set()
    for stored, own_facts in facts.items():
        own = {
            name[len(stored) + 1 :]: tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{stored}.")
        }
        taken |= {f"{stored}.{part}" for part in own}
        if own_facts["facts"].get("format") == "w4a16":
            quarter, dim = packed_shape(own, stored)
            layer = unpack_modulation(own, _chunks(stored, 4 * quarter, dim), stored)
            if layer.shape[0] != sum(own_facts["rows"]):
                raise FileError(f"layer {stored!r} has {layer.shape[0]} rows, not {own_facts['rows']}")
        else:
            shape = (sum(own_facts["rows"]), own_facts["facts"]["shape"][1])
            layer = unpack_layer(own, {**own_facts["facts"], "shape": shape}, stored)  # pyright: ignore
        layers |= dict(zip(own_facts["members"], split_rows(layer, own_facts["rows"]), strict=True))
    plain = {name: tensor for name, tensor in tensors.items() if name not in taken}
    lost = [
        name.rpartition(".")
        for name in plain
        if name.endswith(("qweight", "wscales", "proj_down", "proj_up"))
    ]
    if lost:
        has = ", ".join(sorted(part for layer, _, part in lost if layer == lost[0][0]))
        raise FileError(
            f"layer {lost[0][0]!r} is not whole: the file has {has} of it and no more that is known"
        )
    found = metadata.get("model_class", str(config.get("_class_name", "")))
    ours = {theirs: name for name, theirs in MODEL_CLASSES.items()}
    return QuantizedCheckpoint(layers, plain, config, ours.get(found, found))


def _own_facts(text: str) -> dict[str, dict[str, Any]]:
    """Our metadata entry, which may say anything. Raises `FileError` naming the layer it is wrong about."""
    told = parse_json(text, f"the file's metadata entry {EXTRA!r}")
    if not isinstance(told, dict):
        raise FileError(f"the file's metadata entry {EXTRA!r} is no JSON object")
    for name, own in told.items():
        own = own if isinstance(own, dict) else {}
        members, rows, facts = own.get("members"), own.get("rows"), own.get("facts")
        if not isinstance(members, list) or not isinstance(rows, list) or not isinstance(facts, dict):
            raise FileError(f"the file's metadata entry {EXTRA!r} has no members, rows and facts of {name!r}")
        named = len(members) == len(rows) > 0 and all(isinstance(member, str) for member in members)
        counted = all(type(count) is int and 0 < count < LARGEST for count in rows)
        shape = facts.get("shape")
        if not named or not counted or not (isinstance(shape, list) and len(shape) == 2):
            raise FileError(f"the file's metadata entry {EXTRA!r} is wrong about layer {name!r}: {own}"[:300])
    return told


def _guess(tensors: dict[str, Tensor]) -> dict[str, dict[str, object]]:
    """Facts for files that others wrote: padded sizes as they are, fc2 of GELU MLPs unsigned when int4."""
    facts: dict[str, dict[str, object]] = {}
    for name in [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]:
        if tensors[f"{name}.qweight"].dtype == torch.int32:
            rows = packed_shape({"qweight": tensors[f"{name}.qweight"]}, name)[0] * 4
            facts[name] = {"members": [name], "rows": [rows], "facts": {"format": "w4a16"}}
            continue
        out, dim = packed_shape({"qweight": tensors[f"{name}.qweight"]}, name)
        down, scales = tensors.get(f"{name}.proj_down"), tensors.get(f"{name}.wscales")
        if scales is None:
            raise FileError(f"layer {name!r} of the checkpoint has no wscales")
        form = "nvfp4" if scales.dtype == torch.float8_e4m3fn else "int4"
        parent, _, last = name.rpartition(".")
        members = [f"{parent}.{part}" for part in FUSED[last]] if last in FUSED else [_ours(name)]
        gelu = form == "int4" and re.search(r"(ff(_context)?\.net\.2|mlp_fc2)$", name) is not None
        facts[name] = {
            "members": members,
            "rows": [out // len(members)] * len(members),
            "facts": {
                "format": form, "shape": [out, dim], "unsigned": gelu,
                "rank": down.shape[1] if down is not None and down.ndim == 2 else 0,
            },
        }  # fmt: skip
    if not facts:
        raise FileError("the file has no quantized layer (no tensor named *.qweight)")
    return facts


def _theirs(name: str) -> str:
    block = _BLOCK.match(name)
    if block and block[1].startswith("single_") and block[2] in _SINGLE:
        return f"{block[1]}.{_SINGLE[block[2]]}"
    return name


def _ours(name: str) -> str:
    block = _BLOCK.match(name)
    names = {theirs: ours for ours, theirs in _SINGLE.items()}
    if block and block[1].startswith("single_") and block[2] in names:
        return f"{block[1]}.{names[block[2]]}"
    return name


def _legacy(name: str) -> str:
    block = _BLOCK.match(name)
    if not block:
        return name
    layer, _, part = block[2].rpartition(".")
    return _joined(block[1], _LEGACY_LAYERS.get(layer, layer), _LEGACY_TENSORS.get(part, part))


def _joined(*names: str) -> str:
    """A dotted name without its empty parts: a block's own parameters belong to no layer."""
    return ".".join(name for name in names if name)


def _modern(name: str) -> str:
    block = _BLOCK.match(name)
    if not block:
        return name
    layer, _, part = block[2].rpartition(".")
    single = block[1].startswith("single_")
    names = {
        old: new
        for new, old in _LEGACY_LAYERS.items()
        if (new == "attn.to_out") == single or old != "out_proj"
    }
    if single:  # the MLP's names are the same in both forms there
        names = {old: new for old, new in names.items() if not old.startswith("mlp_")}
    parts = {old: new for new, old in _LEGACY_TENSORS.items()}
    return _joined(block[1], names.get(layer, layer), parts.get(part, part))


def _json(metadata: dict[str, str], key: str, path: Path) -> dict[str, object]:
    value = parse_json(metadata.get(key, "{}"), f"{path.name!r}: its metadata entry {key!r}")
    return value if isinstance(value, dict) else {}
