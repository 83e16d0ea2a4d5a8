"""cache-dit's directory: one safetensors file with the quantized layers alone, and quant_config.json.

The 16-bit rest comes from the original model when it is loaded there, so it is neither written nor read
here, and layers in w4a16 stay with the original too.
"""

import json
from pathlib import Path
from typing import Any

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import inside, parse_json, read_json, write_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.quantize.checkpoint import QuantizedCheckpoint
from fewer.quantize.engine_checks import packed_shape
from fewer.quantize.engine_layer import pack_layer, unpack_layer
from fewer.quantize.layer import QuantizedLayer

CONFIG, CONFIG_FORMAT, CONFIG_VERSION = "quant_config.json", "cache_dit_svdq_quant_config", 2
METADATA, VERSION = "cache_dit_svdq_ptq", 2
EXTRA = "fewer_layers"


def write_folder(checkpoint: QuantizedCheckpoint, folder: Path) -> list[str]:
    """Writes the directory; returns the names of layers that are left to the original model."""
    form, rank = checkpoint.uniform("a cache-dit directory", "int4", "nvfp4")
    tensors, left, facts = {}, [], {}
    for name, layer in checkpoint.layers.items():
        if layer.format == "w4a16":
            left.append(name)
            continue
        if layer.shape[1] % 2:
            raise ConfigError(f"layer {name!r} has {layer.shape[1]} inputs; cache-dit needs an even number")
        own = pack_layer(layer, name)
        own.pop("wtscale", None)  # a number in their module, always 1 here
        tensors |= {f"{name}.{part}": tensor for part, tensor in own.items()}
        facts[name] = layer.facts()
    quant_type = f"svdq_{form}_r{rank}"
    payload = {
        "format": METADATA, "version": VERSION, "quant_type": quant_type, "rank": rank,
            "precision": form,
        "quantized_layer_names": list(facts), "svdq_kwargs": {},
    }  # fmt: skip
    name = f"{quant_type}.safetensors"
    write_tensors(
        folder / name, tensors, {METADATA: json.dumps(payload, sort_keys=True), EXTRA: json.dumps(facts)}
    )
    write_json(
        folder / CONFIG,
        {
            "format": CONFIG_FORMAT, "version": CONFIG_VERSION, "backend": "cache_dit",
            "quant_type": quant_type, "rank": rank,
            "checkpoint_path": name, "exclude_layers": left, "regional_quantize": False,
            "repeated_blocks": None, "verbose": False, "svdq_kwargs": {},
        },
    )  # fmt: skip
    return left


def read_folder(folder: Path) -> QuantizedCheckpoint:
    """Reads the directory. Sizes that were padded come back padded unless the file was written by us."""
    settings = read_json(folder / CONFIG)
    if settings.get("format") != CONFIG_FORMAT or settings.get("version") != CONFIG_VERSION:
        raise FileError(f"{folder.name!r} is no cache-dit directory of version {CONFIG_VERSION}")
    path = inside(folder, str(settings.get("checkpoint_path", "")))
    _, metadata = tensor_header(path)
    try:
        payload: Any = parse_json(metadata.get(METADATA, ""), repr(METADATA))
        names, form, rank = payload["quantized_layer_names"], payload["precision"], int(payload["rank"])
        known = parse_json(metadata.get(EXTRA, "{}"), repr(EXTRA))
        if not all(isinstance(name, str) for name in names) or not isinstance(known, dict):
            raise TypeError("names and facts of other types")
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path.name!r} has no readable {METADATA!r} metadata") from error
    tensors = read_tensors(path)
    layers: dict[str, QuantizedLayer] = {}
    for name in names:
        own = {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        shape = packed_shape(own, name)
        facts = known.get(name, {"format": form, "rank": rank, "shape": shape})
        layers[name] = unpack_layer(own, facts, name)
    return QuantizedCheckpoint(layers)
