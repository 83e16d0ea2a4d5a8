"""A quantized model as data, our own folder for it, and the way into and out of a module.

Every dialect reads into `QuantizedCheckpoint` and writes from it, so any can become any other.
Our folder: `config.json` (the model's own, plus `quantization_config` with quant_method "fewer") and
`model.safetensors`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json, write_bytes
from fewer.core.modules import other_names
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.lora import AdaptedLayer
from fewer.quantize.layer import TENSOR_NAMES, QuantizedLayer, layer_from_tensors
from fewer.quantize.linear import QuantizedLinear
from fewer.quantize.roles import SPLIT_NAMES, eligible, weight_of
from fewer.quantize.svdquant import install, split_layers

METHOD, VERSION = "fewer", 1
WEIGHTS = "model.safetensors"


@dataclass(slots=True)
class QuantizedCheckpoint:
    """Quantized layers by module name (q, k and v apart), the other tensors, and the model's
    configuration.
    """

    layers: dict[str, QuantizedLayer]
    plain: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)
    model_class: str = ""

    def names(self, *formats: str) -> list[str]:
        """Layers in any of the formats."""
        return [name for name, layer in self.layers.items() if layer.format in formats]

    def uniform(self, what: str, *formats: str) -> tuple[str, int]:
        """(format, rank) of all layers that are not w4a16; raises `ConfigError` unless they agree and are
        allowed.

        `what` names the dialect in the message.
        """
        main = {(layer.format, layer.rank) for layer in self.layers.values() if layer.format != "w4a16"}
        if len(main) != 1 or next(iter(main))[0] not in formats:
            found = ", ".join(sorted(f"{form} rank {rank}" for form, rank in main)) or "none"
            raise ConfigError(
                f"{what} holds layers of one format ({' or '.join(formats)}) and one rank; "
                f"this model has {found}; "
                f"quantize it again with --format {formats[0]}"
            )
        return next(iter(main))

    def byte_count(self) -> int:
        """Bytes of all tensors."""
        plain = sum(tensor.numel() * tensor.element_size() for tensor in self.plain.values())
        return plain + sum(layer.byte_count() for layer in self.layers.values())


def checkpoint_of(module: nn.Module, config: dict[str, object] | None = None) -> QuantizedCheckpoint:
    """What a quantized module holds. Raises `ConfigError` while it carries adapters, no part of it."""
    if any(
        isinstance(child, AdaptedLayer) or (isinstance(child, QuantizedLinear) and child.adapters)
        for child in module.modules()
    ):
        raise ConfigError("the model carries adapters; detach them before saving, they have their own file")
    layers = {
        name: child.layer for name, child in module.named_modules() if isinstance(child, QuantizedLinear)
    }
    owned = _inside(layers, other_names(module))
    twins = _twins(module)
    plain = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not name.startswith(owned) and name not in twins
    }
    return QuantizedCheckpoint(layers, plain, dict(config or {}), type(module).__name__)


def apply_checkpoint(module: nn.Module, checkpoint: QuantizedCheckpoint, *, whole: bool = True) -> nn.Module:
    """Puts a checkpoint's layers and tensors into `module` (which may be on the meta device) and returns it.

    `whole=False` allows tensors to be missing (cache-dit files hold quantized layers alone). Raises
    `FileError` for layers the model does not have, missing, unexpected or misshapen tensors, each by name,
    before anything changes.
    """
    splits = _splits(checkpoint)
    missing_layers = []
    for name in [*(name for name, _ in splits), *checkpoint.layers]:
        parent = name.rpartition(".")[0] if name.rpartition(".")[0] in dict(splits) else name
        try:
            module.get_submodule(parent)
        except AttributeError:
            missing_layers.append(name)
    if missing_layers:
        raise FileError(
            f"the checkpoint quantizes {missing_layers[:5]}, which {type(module).__name__} does not have"
        )
    _check_layers(module, checkpoint, splits)
    places = other_names(module)
    replaced = _inside((*dict(splits), *checkpoint.layers), places)
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(replaced)}
    given = dict(checkpoint.plain)
    given |= {
        name: given[first] for name, first in _twins(module).items() if first in given and name in own
    } | given
    _compare(own, given, whole)
    split_layers(module, splits)
    for name, layer in checkpoint.layers.items():
        install(module, name, layer, places)
    module.load_state_dict(given, strict=False, assign=True)
    return module.eval()


def _inside(layers: Iterable[str], places: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What the names of these layers' tensors begin with, wherever else the layers stand."""
    return tuple(f"{place}." for name in layers for place in (name, *places.get(name, ())))


def _twins(module: nn.Module) -> dict[str, str]:
    """Second name -> first name of parameters that a model ties (a language model's head, its embeddings)."""
    first: dict[int, str] = {}
    return {
        name: found
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if (found := first.setdefault(id(parameter), name)) != name
    }


def save_quantized(checkpoint: QuantizedCheckpoint, folder: Path) -> None:
    """Writes our own folder; the configuration comes last, so a folder without one is unfinished."""
    tensors = dict(checkpoint.plain)
    for name, layer in checkpoint.layers.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in layer.tensors().items()}
    config = dict(checkpoint.config)
    config["quantization_config"] = {
        "quant_method": METHOD,
        "version": VERSION,
        "model_class": checkpoint.model_class,
        "layers": {name: layer.facts() for name, layer in checkpoint.layers.items()},
    }
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_bytes(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def load_quantized(folder: Path) -> QuantizedCheckpoint:
    """Reads our own folder. Raises `FileError` for anything missing, extra or misshapen, naming the layer."""
    config = read_json(folder / "config.json")
    settings = config.pop("quantization_config", None)
    if not isinstance(settings, dict) or settings.get("quant_method") != METHOD:
        raise FileError(f"{folder.name!r} was not written by fewer quantize; open it with fewer convert")
    if settings.get("version") != VERSION:
        raise FileError(
            f"{folder.name!r} has quantization version {settings.get('version')!r}, not {VERSION}"
        )
    if not isinstance(settings.get("layers"), dict):
        raise FileError(f"the quantization_config of {folder.name!r} has no object of layers")
    return assemble(
        read_tensors(folder / WEIGHTS), settings["layers"], config, str(settings.get("model_class", ""))
    )


def assemble(
    tensors: dict[str, Tensor],
    facts: dict[str, dict[str, object]],
    config: dict[str, object],
    model_class: str,
) -> QuantizedCheckpoint:
    """Sorts the tensors of our folder into layers and the rest."""
    layers: dict[str, QuantizedLayer] = {}
    taken: set[str] = set()
    for name, own_facts in facts.items():
        own = {part: tensors[f"{name}.{part}"] for part in TENSOR_NAMES if f"{name}.{part}" in tensors}
        taken |= {f"{name}.{part}" for part in own}
        layers[name] = layer_from_tensors(own, own_facts, name)
    plain = {name: tensor for name, tensor in tensors.items() if name not in taken}
    if lost := [name.removesuffix(".codes") for name in plain if name.endswith(".codes")]:
        raise FileError(f"the file has codes of layer {lost[0]!r}, which its config.json does not list")
    return QuantizedCheckpoint(layers, plain, config, model_class)


def _splits(checkpoint: QuantizedCheckpoint) -> tuple[tuple[str, tuple[int, ...]], ...]:
    first, second = SPLIT_NAMES
    found = []
    for name, layer in checkpoint.layers.items():
        parent, _, last = name.rpartition(".")
        other = checkpoint.layers.get(f"{parent}.{second}")
        if last == first and other is not None and parent.endswith("proj_out"):
            found.append((parent, (layer.shape[1], other.shape[1])))
    return tuple(found)


def _check_layers(
    module: nn.Module, checkpoint: QuantizedCheckpoint, splits: tuple[tuple[str, tuple[int, ...]], ...]
) -> None:
    """Raises `FileError` for a layer of another size than the model's, or without the bias that it has."""
    pieces = {f"{name}.{piece}": widths[i] for name, widths in splits for i, piece in enumerate(SPLIT_NAMES)}
    for name, layer in checkpoint.layers.items():
        original = module.get_submodule(name.rpartition(".")[0] if name in pieces else name)
        if not eligible(original):
            continue
        out, dim = weight_of(original).shape
        dim = pieces.get(name, dim)
        if layer.shape != (out, dim):
            raise FileError(
                f"layer {name!r} is {layer.shape[0]} x {layer.shape[1]} in the file and {out} x {dim} in "
                f"{type(module).__name__}"
            )
        carries = name not in pieces or name.endswith(SPLIT_NAMES[-1])
        if layer.bias is None and original.bias is not None and carries:
            raise FileError(f"layer {name!r} has no bias in the file, but in {type(module).__name__} it has")


def _compare(own: dict[str, Tensor], given: dict[str, Tensor], whole: bool) -> None:
    missing = sorted(set(own) - set(given)) if whole else []
    unexpected = sorted(set(given) - set(own))
    shapes = [
        f"{name}: {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(given))
        if own[name].shape != given[name].shape
    ]
    shapes += [
        f"{name}: {given[name].dtype} instead of {own[name].dtype}"
        for name in sorted(set(own) & set(given))
        if given[name].is_floating_point() != own[name].is_floating_point()
    ]
    if missing or unexpected or shapes:
        raise FileError(
            f"the checkpoint does not fit the model: missing {missing[:5]} ({len(missing)}), "
            f"unexpected {unexpected[:5]} ({len(unexpected)}), "
            f"misshapen or mistyped {shapes[:5]} ({len(shapes)})"
        )
