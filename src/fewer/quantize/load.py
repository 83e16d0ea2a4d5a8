"""A quantized folder or file of any dialect, straight into a module that runs on this machine."""

from pathlib import Path

import torch
from torch import nn

from fewer.core.blank import without_values
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json
from fewer.quantize import dialect_cache_dit, dialect_deepcompressor, dialect_lite, dialect_nunchaku
from fewer.quantize.checkpoint import METHOD, QuantizedCheckpoint, apply_checkpoint, load_quantized
from fewer.quantize.linear import QuantizedLinear
from fewer.quantize.models import empty_model


def read_checkpoint(source: Path) -> tuple[QuantizedCheckpoint, str]:
    """(checkpoint, dialect) of a file or folder, told by its content.

    Raises `FileError` if it is none of: fewer, nunchaku, nunchaku-legacy, nunchaku-lite, cache-dit,
    deepcompressor.
    """
    if source.is_file():
        return dialect_nunchaku.read_file(source), "nunchaku"
    if not source.is_dir():
        raise FileError(f"{source.name!r} is neither a file nor a folder; check the path", missing=True)
    if (source / dialect_cache_dit.CONFIG).exists():
        return dialect_cache_dit.read_folder(source), "cache-dit"
    if (source / "transformer_blocks.safetensors").exists():
        return dialect_nunchaku.read_legacy(source), "nunchaku-legacy"
    if (source / "scale.safetensors").exists():
        return dialect_deepcompressor.read_folder(source), "deepcompressor"
    config = read_json(source / "config.json") if (source / "config.json").exists() else {}
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method == METHOD:
        return load_quantized(source), "fewer"
    if method == dialect_lite.METHOD:
        return dialect_lite.read_folder(source), "nunchaku-lite"
    files = sorted(source.glob("*.safetensors"))
    if len(files) == 1 and files[0].name.startswith("svdq-"):  # the folder around a single file
        return dialect_nunchaku.read_file(files[0]), "nunchaku"
    raise FileError(
        f"{source.name!r} is no quantized model that is known: fewer, nunchaku (file or legacy folder), "
        f"nunchaku-lite, cache-dit or deepcompressor"
    )


def load_model(
    source: Path | str,
    base: nn.Module | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The quantized module, ready to run. `base` supplies the model where the files hold no configuration.

    `dtype` is what layers that stayed in 16 bits are held and calculated in; that of the file if None.

    Raises `FileError` or `ConfigError` naming what is missing or does not fit.
    """
    checkpoint, dialect = read_checkpoint(Path(source))
    if base is None and not checkpoint.config:
        raise ConfigError(
            f"files of {dialect} do not say what model they are of; open the 16-bit model and pass it: "
            f"load_model(source, base=model)"
        )
    if base is None:
        module = _filled(checkpoint)
    else:
        module = apply_checkpoint(base, checkpoint, whole=bool(checkpoint.plain))
    module = module.to(device)
    return module if dtype is None else _held_in(module, dtype)


def _filled(checkpoint: QuantizedCheckpoint) -> nn.Module:
    """The checkpoint's own model, built in no memory, since the file fills it: whole weights would take four
    to eight times the file. Only a model with tables that no file holds is built whole.
    """
    config, kind = checkpoint.config, checkpoint.model_class
    _check_depth(config, len(checkpoint.layers) + len(checkpoint.plain))
    whole = bool(checkpoint.plain)
    try:
        with without_values():
            module = empty_model(config, kind)
    except (ConfigError, RuntimeError):  # it computes with its weights while it is built, or is no model
        return apply_checkpoint(empty_model(config, kind), checkpoint, whole=whole)
    module = apply_checkpoint(module, checkpoint, whole=whole)
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        return apply_checkpoint(empty_model(config, kind), checkpoint, whole=whole)
    return module


def _check_depth(config: dict[str, object], tensors: int) -> None:
    """Raises `FileError` for a configuration of more layers than the file has tensors, before they exist."""
    for key, value in config.items():
        if "layers" in key and type(value) is int and value > tensors:
            raise FileError(f"the configuration says {key} {value}, the file holds {tensors} tensors")


def _held_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """All but the quantized layers, whose scales have formats of their own, in `dtype`."""
    for child in module.modules():
        if isinstance(child, QuantizedLinear):
            continue
        for name, tensor in child.named_parameters(recurse=False):
            if tensor.is_floating_point():
                setattr(child, name, nn.Parameter(tensor.to(dtype), requires_grad=tensor.requires_grad))
        for name, tensor in child.named_buffers(recurse=False):
            if tensor.is_floating_point():
                setattr(child, name, tensor.to(dtype))
    return module
