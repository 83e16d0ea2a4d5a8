"""Sana transformers on disk: diffusers folders and native checkpoints, both ways, strictly.

Nothing is allocated before the names and shapes in the files' headers agree with the configuration.
"""

from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from fewer.core.blank import without_values
from fewer.core.config import validate
from fewer.core.device import require_memory
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json, write_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.compact import expand, weight_shapes
from fewer.generate.transformer.names import from_native, is_native, to_native
from fewer.generate.transformer.params import PUBLISHED, SanaParams
from fewer.generate.transformer.sana import SanaTransformer
from fewer.generate.transformer.shards import WEIGHTS, weight_files, write_shards

_KEYS = {
    "heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "depth": "num_layers",
    "cross_heads": "num_cross_attention_heads",
    "cross_head_dim": "cross_attention_head_dim",
}
"""Our fields whose name differs from diffusers' configuration key."""
_FIXED = {"dropout": 0.0, "norm_elementwise_affine": False}
"""Keys of diffusers that no published model sets otherwise, and that we therefore do not build."""


def load_transformer(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    *,
    params: SanaParams | None = None,
) -> SanaTransformer:
    """A transformer from a diffusers folder (or a pipeline's folder) or a native checkpoint.

    Names and shapes are compared before memory is taken. A native file says nothing of its heads: without
    a config.json beside it, `params` (see `published`) or a published size decides. `dtype=None` keeps the
    file's. Raises `FileError` listing every missing, extra and misshapen tensor at once.
    """
    path = Path(path)
    if (path / "transformer").is_dir():
        path = path / "transformer"
    files = weight_files(path)
    shapes: dict[str, tuple[int, ...]] = {}
    total = 0
    for file in files:
        header, _ = tensor_header(file)
        shapes |= {name: info.shape for name, info in header.items()}
        total += file.stat().st_size
    shapes = weight_shapes(shapes, path.name)
    native = is_native(set(shapes))
    config = (path if path.is_dir() else path.parent) / "config.json"
    if native:
        with torch.device("meta"):
            renamed = from_native({name: torch.empty(shape) for name, shape in shapes.items()})
        shapes = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    if params is None:
        params = read_params(config) if config.exists() else _recognise(shapes, path.name)
    if params.depth > len(shapes):  # said before 65,536 blocks are built in vain
        raise FileError(f"{path.name!r} holds {len(shapes)} tensors, too few for {params.depth} blocks")
    model = _empty(params)
    compare_shapes({name: tuple(t.shape) for name, t in model.state_dict().items()}, shapes, path.name)
    expanded = sum(prod(shape) for shape in shapes.values()) * (dtype or torch.bfloat16).itemsize
    require_memory(
        total + max(total, expanded), torch.device("cpu"), "free some memory or choose a smaller model"
    )
    stored = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    tensors = expand(stored, dtype)
    tensors = from_native(tensors) if native else tensors
    tensors = {name: tensor.to(device, dtype or tensor.dtype) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def save_transformer(model: SanaTransformer, folder: str | Path, *, native: bool = False) -> list[Path]:
    """Writes config.json and the weights, in shards above 5 GB as diffusers does; returns what it wrote.

    A native file keeps the config.json, because its tensors don't tell the number of heads.
    """
    folder = Path(folder)
    config = folder / "config.json"
    tensors: Mapping[str, Tensor] = model.state_dict()
    write_json(config, write_params(model.params))
    if not native:
        return [config, *write_shards(folder, tensors)]
    write_tensors(folder / f"{WEIGHTS}.safetensors", to_native(tensors), {"format": "pt"})
    return [config, folder / f"{WEIGHTS}.safetensors"]


def read_params(config: Path) -> SanaParams:
    """Our parameters from diffusers' config.json. Raises `FileError` or `ConfigError` naming the key."""
    given = {key: value for key, value in read_json(config).items() if not key.startswith("_")}
    if "quantization_config" in given:
        raise ConfigError(f"{config.parent.name!r} is quantized; open it with fewer.quantize")
    for key, value in _FIXED.items():
        if given.pop(key, value) != value:
            raise ConfigError(f"{key} of {config.parent.name!r} must be {value}: no published Sana differs")
    norm = given.pop("qk_norm", None)
    if norm not in (None, "rms_norm_across_heads"):
        raise ConfigError(f"qk_norm was {norm!r}; allowed: null, 'rms_norm_across_heads'")
    cross_width = given.pop("cross_attention_dim", None)
    ours = {theirs: name for name, theirs in _KEYS.items()}
    given = {ours.get(key, key): value for key, value in given.items()}
    if given.get("out_channels", 32) is None:
        given["out_channels"] = given.get("in_channels", 32)
    params = validate(SanaParams, given | {"qk_norm": norm is not None}).check()
    if cross_width not in (None, params.width):
        raise ConfigError(f"cross_attention_dim was {cross_width}; it must be the width, {params.width}")
    return params


def write_params(params: SanaParams) -> dict[str, object]:
    """diffusers' config.json for our parameters."""
    config = {_KEYS.get(name, name): value for name, value in asdict(params).items()}
    config["qk_norm"] = "rms_norm_across_heads" if params.qk_norm else None
    return {
        "_class_name": "SanaTransformer2DModel",
        **config,
        "cross_attention_dim": params.width,
        **_FIXED,
    }


def compare_shapes(
    wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raises one `FileError` that lists all missing, extra and misshapen tensors of a file."""
    problems = [f"missing {name}" for name in sorted(wanted.keys() - given.keys())]
    problems += [f"extra {name}" for name in sorted(given.keys() - wanted.keys())]
    problems += [
        f"{name} is {list(given[name])}, must be {list(wanted[name])}"
        for name in sorted(wanted.keys() & given.keys())
        if wanted[name] != given[name]
    ]
    if problems:
        raise FileError(f"{where!r} does not fit its configuration: " + "; ".join(problems))


def _empty(params: SanaParams) -> SanaTransformer:
    with without_values():
        return SanaTransformer(params)


def _recognise(shapes: Mapping[str, tuple[int, ...]], where: str) -> SanaParams:
    """The published model that has exactly these shapes; resolutions differ only in what files don't hold."""
    matching = {}
    for name, params in PUBLISHED.items():
        size = name.rpartition("-")[2]
        width = shapes.get("patch_embed.proj.weight", (0,))[0]
        depth = len({key.split(".")[1] for key in shapes if key.startswith("transformer_blocks.")})
        if (params.width, params.depth) == (width, depth):
            ours = {key: tuple(t.shape) for key, t in _empty(params).state_dict().items()}
            if ours == dict(shapes):
                matching[size] = params
    named = {"512": "512", "1024": "1024", "2048": "2k", "4096": "4k"}
    chosen = [params for size, params in matching.items() if named[size] in where.lower()]
    if len(matching) == 1 or len(chosen) == 1:
        return next(iter(chosen or matching.values()))
    raise ConfigError(
        f"{where!r} has no config.json and no published shape alone fits it; "
        f"put one beside it or pass params=published(name): {', '.join(PUBLISHED)}"
    )
