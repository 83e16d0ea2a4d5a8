"""diffusers' "Nunchaku Lite": an ordinary diffusers folder whose config.json lists the quantized modules.

q, k and v stay apart, modulation is not interleaved, activations are always signed and sizes are not
padded. Layers that this form cannot hold (1x1 convolutions, halves of a split layer, unsigned inputs, odd
sizes) are
written back in 16 bits, and the caller is told which.
"""

from pathlib import Path

import torch
from torch import Tensor

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json, write_json
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.transformer.shards import weight_files
from fewer.quantize.checkpoint import QuantizedCheckpoint
from fewer.quantize.engine_checks import packed_shape
from fewer.quantize.engine_layer import (
    pack_layer,
    pack_modulation,
    sixteen_bit,
    unpack_layer,
    unpack_modulation,
)
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.roles import SPLIT_NAMES

WEIGHTS = "diffusion_pytorch_model.safetensors"
METHOD = "nunchaku_lite"


def write_folder(checkpoint: QuantizedCheckpoint, folder: Path) -> list[str]:
    """Writes the folder; returns the names of layers that went back to 16 bits."""
    form, rank = checkpoint.uniform("a Nunchaku Lite folder", "int4", "nvfp4")
    compute = next(sixteen_bit(layer) for layer in checkpoint.layers.values() if layer.format == form)
    rest = next((t.dtype for t in checkpoint.plain.values() if t.is_floating_point()), compute)
    tensors, dense = dict(checkpoint.plain), []
    targets: dict[str, list[str]] = {"svdq": [], "awq": []}
    for name, layer in checkpoint.layers.items():
        if not _fits(layer, name):
            dense.append(name)
            continue
        if layer.format == "w4a16":
            own = pack_modulation(layer, 1, name)
            targets["awq"].append(name)
        else:
            own = {
                part: value
                for part, value in pack_layer(layer, name, pad=False).items()
                if part != "smooth_factor_orig"
            }
            targets["svdq"].append(name)
        tensors |= {f"{name}.{part}": tensor for part, tensor in own.items()}
    if not targets["svdq"] and not targets["awq"]:
        raise ConfigError(
            "no layer of this model fits Nunchaku Lite, which takes sides in multiples of 128, ranks of 16 "
            "and signed activations; convert to nunchaku, or quantize again with --no-unsigned"
        )
    tensors |= _dense(checkpoint, dense, rest)
    settings: dict[str, object] = {"quant_method": METHOD, "compute_dtype": str(compute).split(".")[1]}
    group = 64 if form == "int4" else 16
    if targets["svdq"]:
        settings["svdq_w4a4"] = {
            "precision": form, "group_size": group, "rank": rank, "targets": targets["svdq"],
        }  # fmt: skip
    if targets["awq"]:
        settings["awq_w4a16"] = {"precision": "int4", "group_size": 64, "targets": targets["awq"]}
    config = {"_class_name": checkpoint.model_class} | checkpoint.config | {"quantization_config": settings}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / "config.json", config)
    return dense


def read_folder(folder: Path) -> QuantizedCheckpoint:
    """Reads the folder. Raises `FileError` naming the layer that is listed twice, incomplete or misshapen."""
    config = read_json(folder / "config.json")
    settings = config.pop("quantization_config", None)
    if not isinstance(settings, dict) or settings.get("quant_method") != METHOD:
        raise FileError(f"{folder.name!r} has no quantization_config of quant_method {METHOD!r}")
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= read_tensors(path)
    svdq, awq = (_section(settings, key, folder) for key in ("svdq_w4a4", "awq_w4a16"))
    names = [*svdq.get("targets", []), *awq.get("targets", [])]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise FileError(f"{folder.name!r} lists {twice} more than once; a module may be in one list only")
    layers: dict[str, QuantizedLayer] = {}
    taken: set[str] = set()
    for name in names:
        own = {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        taken |= {f"{name}.{part}" for part in own}
        shape = packed_shape(own, name)
        if name in awq.get("targets", []):
            layers[name] = unpack_modulation(own, 1, name)
            continue
        facts = {"format": svdq["precision"], "rank": int(svdq["rank"]), "shape": shape}
        layers[name] = unpack_layer(own, facts, name)
    plain = {name: tensor for name, tensor in tensors.items() if name not in taken}
    return QuantizedCheckpoint(layers, plain, config, str(config.get("_class_name", "")))


def _section(settings: dict[str, object], key: str, folder: Path) -> dict:
    """One part of the quantization_config, its entries of the types they must have."""
    section: dict = settings.get(key) or {}  # pyright: ignore
    targets = section.get("targets", []) if isinstance(section, dict) else None
    good = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    if good and key == "svdq_w4a4" and targets:
        good = section.get("precision") in ("int4", "nvfp4") and type(section.get("rank")) is int
    if not good:
        raise FileError(
            f"{folder.name!r}: {key} of its quantization_config needs targets (a list of names), and for "
            f"svdq_w4a4 precision int4 or nvfp4 and a rank"
        )
    return section


def _fits(layer: QuantizedLayer, name: str) -> bool:
    out, dim = layer.shape
    if (
        layer.convolution
        or layer.unsigned
        or (name.rpartition(".")[2] in SPLIT_NAMES and ".proj_out." in name)
    ):
        return False
    if layer.format == "w4a16":
        return not (out % 4 or dim % 64)
    return not (out % 128 or dim % 128 or layer.rank % 16)


def _dense(checkpoint: QuantizedCheckpoint, names: list[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of layers that do not fit, in the format of the rest of the model, split layers joined."""
    tensors: dict[str, Tensor] = {}
    pieces: dict[str, dict[str, Tensor]] = {}
    for name in names:
        layer = checkpoint.layers[name]
        weight = layer.weight().to(dtype)
        parent, _, last = name.rpartition(".")
        if last in SPLIT_NAMES and parent.endswith("proj_out"):
            pieces.setdefault(parent, {})[last] = weight
            name = parent
        else:
            tensors[f"{name}.weight"] = weight[:, :, None, None] if layer.convolution else weight
        if (bias := layer.dense_bias()) is not None:
            tensors[f"{name}.bias"] = bias.to(dtype)
    for parent, halves in pieces.items():
        tensors[f"{parent}.weight"] = torch.cat([halves[name] for name in SPLIT_NAMES], dim=1)
    return tensors
