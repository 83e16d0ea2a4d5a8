"""Autoencoders on disk: diffusers' folders and the authors' native names, both ways, strictly.

A folder holds `config.json` and safetensors (whole, sharded, or a `.fp16`/`.bf16` variant). The names and
shapes in the files are compared with the config before any memory is taken, and everything that does not
fit is listed in one report. Our modules carry diffusers' names, so only native names are translated.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fewer.core.blank import without_values
from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json, write_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.autoencoder.config import DCAutoencoderConfig
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.native_names import is_native, split_native, to_native
from fewer.generate.autoencoder.published import published_config, published_names
from fewer.generate.compact import SCALE, expand, weight_shapes
from fewer.generate.transformer.shards import VARIANTS, WEIGHTS, forget_others, stored_files

logger = logging.getLogger(__name__)

NATIVE_WEIGHTS = "model"
CLASS_NAME = "AutoencoderDC"
COUNTER = "num_batches_tracked"
Shapes = dict[str, tuple[int, ...]]


def load_autoencoder(folder: Path, *, dtype: torch.dtype | None, device: torch.device) -> DCAutoencoder:
    """See `DCAutoencoder.load`."""
    if not folder.is_dir():
        raise FileError(f"{folder.name!r} is no folder; give one with config.json", missing=True)
    files = _weight_files(folder, dtype)
    shapes: Shapes = {}
    stored: dict[str, str] = {}
    for file in files:
        header, _ = tensor_header(file)
        shapes.update({name: info.shape for name, info in header.items()})
        stored.update({name: info.dtype for name, info in header.items()})
    shapes = weight_shapes(shapes, folder.name)
    native = is_native(shapes)
    shapes = split_native(shapes, _third_of_shape) if native else shapes
    config = _read_config(folder, shapes)
    with without_values():
        model = DCAutoencoder(config)
    compare(state_shapes(model), shapes, folder.name)
    _check_formats(stored, folder.name)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_tensors(file, device=device))
    tensors = _in_one_format(expand(tensors, dtype))
    tensors = split_native(tensors, _third_of_tensor) if native else tensors
    model.load_state_dict(tensors, strict=True, assign=True)
    model = model.to(dtype=dtype) if dtype is not None else model
    if device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # several times faster there, of no use on a GPU
    return model.requires_grad_(False).eval()


def save_autoencoder(
    model: DCAutoencoder, folder: Path, naming: Literal["diffusers", "native"] = "diffusers"
) -> None:
    """See `DCAutoencoder.save`. Native names go to `model.safetensors`, others to diffusers' file name."""
    tensors = model.state_dict()
    if naming == "native":
        tensors = to_native(tensors, model.config)
    name = NATIVE_WEIGHTS if naming == "native" else WEIGHTS
    write_tensors(folder / f"{name}.safetensors", tensors, {"format": "pt"})
    forget_others(folder, name)
    write_json(folder / "config.json", config_to_mapping(model.config))


def config_from_mapping(mapping: Mapping[str, object]) -> DCAutoencoderConfig:
    """A `config.json` to our dataclass. Keys we do not know are named in a warning and left out.

    Raises `ConfigError` for a known key with a value that is not allowed.
    """
    known = {field.name for field in fields(DCAutoencoderConfig)}
    unknown = sorted(key for key in mapping if key not in known and not key.startswith("_"))
    if unknown:
        logger.warning("autoencoder config: unknown keys left out: %s", ", ".join(unknown))
    given = {key: value for key, value in mapping.items() if key in known}
    return validate(DCAutoencoderConfig, given)


def config_to_mapping(config: DCAutoencoderConfig) -> dict[str, object]:
    """Our dataclass to a `config.json` that diffusers reads; keys of our own only where they are set."""
    mapping: dict[str, object] = {"_class_name": CLASS_NAME}
    own = ("latents_mean", "latents_std", "latent_prefixes")
    mapping.update({key: value for key, value in asdict(config).items() if key not in own or value})
    return mapping


def state_shapes(model: torch.nn.Module) -> Shapes:
    """Name and shape of every tensor of a model, also on the meta device."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def compare(expected: Shapes, found: Shapes, where: str) -> None:
    """Raises one `FileError` that lists every missing, unexpected and wrongly shaped tensor."""
    lines = [f"  missing: {name} {list(expected[name])}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"  unexpected: {name} {list(found[name])}" for name in sorted(found.keys() - expected.keys())]
    lines += [
        f"  shape of {name}: {list(found[name])} in the file, {list(expected[name])} by the config"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    if lines:
        raise FileError(f"{len(lines)} tensors of {where!r} do not fit its config:\n" + "\n".join(lines))


def _check_formats(stored: Mapping[str, str], where: str) -> None:
    """Weights are floating point, or whole numbers with scales beside them (`compact`)."""
    wrong = [
        f"{name} ({dtype})"
        for name, dtype in sorted(stored.items())
        if not dtype.startswith(("F", "BF")) and not name.endswith(COUNTER) and name + SCALE not in stored
    ]
    if wrong:
        raise FileError(
            f"{len(wrong)} tensors of {where!r} are no floating-point weights: {', '.join(wrong[:8])}; "
            "quantized files need the program that made them"
        )


def _in_one_format(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As they are where all have one format that arithmetic knows; else all in fp32."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) <= 1 and kinds <= {torch.float16, torch.bfloat16, torch.float32, torch.float64}:
        return tensors
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _read_config(folder: Path, shapes: Shapes) -> DCAutoencoderConfig:
    """From config.json; native folders often name a published model, or hold no config at all."""
    path = folder / "config.json"
    mapping = read_json(path) if path.exists() else {}
    kind = mapping.get("_class_name", CLASS_NAME)
    if kind != CLASS_NAME:
        raise FileError(f"{folder.name!r} holds a {str(kind)[:60]}, not an {CLASS_NAME} (DC-AE)")
    if "encoder_block_out_channels" in mapping or "latent_channels" in mapping:
        try:
            return config_from_mapping(mapping)
        except ConfigError as error:
            raise ConfigError(f"config.json of {folder.name!r}: {error}") from error
    for name in (str(mapping.get("model_name", "")), *_names_of(folder)):
        try:
            return published_config(name)
        except ConfigError:
            continue
    return config_by_tensors(shapes, folder.name)


def _names_of(folder: Path) -> list[str]:
    """What the folder is called; in a hub's cache (models--OWNER--NAME/snapshots/HASH) the model's name."""
    whole = folder.resolve()
    cached = [part.name.rsplit("--", 1)[-1] for part in whole.parents if part.name.startswith("models--")]
    return [whole.name, *cached[:1]]


def config_by_tensors(shapes: Shapes, where: str) -> DCAutoencoderConfig:
    """Of the published model that has exactly these tensors.

    Raises `FileError` where none has, and where two have (models that saw other pictures): their latents are
    scaled by other factors, which no tensor tells.
    """
    fitting: dict[str, DCAutoencoderConfig] = {}
    for name in published_names():
        with without_values():
            model = DCAutoencoder(published_config(name))
        if state_shapes(model) == shapes:
            fitting[name] = model.config
    if len(fitting) == 1:
        name, config = fitting.popitem()
        logger.warning("%r has no config.json that fewer reads; its tensors are those of %s", where, name)
        return config
    if not fitting:
        raise FileError(
            f"{where!r} has no config.json that describes its network, and its tensors are those of no "
            "published model",
            missing=True,
        )
    factors = " or ".join(f"{name} (scaling_factor {fitting[name].scaling_factor})" for name in fitting)
    raise FileError(
        f"{where!r} has no config.json, and its tensors may be those of {factors}; say which with a "
        f'config.json of {{"model_name": "dc-ae-{min(fitting)}-1.0"}}, or name the folder so',
        missing=True,
    )


def _weight_files(folder: Path, dtype: torch.dtype | None) -> list[Path]:
    wanted = {torch.float16: [".fp16"], torch.bfloat16: [".bf16"]}.get(dtype, []) if dtype else []
    for stem in (WEIGHTS, NATIVE_WEIGHTS):
        if found := stored_files(folder, stem, [*wanted, *VARIANTS]):
            return found
    pickles = sorted(p.name for p in folder.iterdir() if re.search(r"\.(bin|pt|pth|ckpt|pkl)$", p.name))
    hint = f"; turn {pickles[0]!r} into safetensors with: fewer convert --trust-pickle" if pickles else ""
    raise FileError(
        f"{folder.name!r} holds no {WEIGHTS}.safetensors or {NATIVE_WEIGHTS}.safetensors{hint}", missing=True
    )


def _third_of_shape(shape: tuple[int, ...], index: int) -> tuple[int, ...]:
    """`index` 0..2: that third of a 1x1 convolution's rows as a matrix; -1: the whole as a matrix."""
    return (shape[0] // 3 if index >= 0 else shape[0], *shape[1:2])


def _third_of_tensor(weight: Tensor, index: int) -> Tensor:
    matrix = weight.flatten(1)
    return (matrix.chunk(3)[index] if index >= 0 else matrix).clone()
