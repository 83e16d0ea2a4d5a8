"""Low-rank adapters (LoRA) in PEFT's files: read, attached from outside at any strength, taken off again.

An adapted layer computes W x + sum_i s_i (alpha_i / r_i) B_i A_i x (arXiv 2106.09685). The layer inside may
be any module with the same input and output, a quantized one too: it is wrapped, never changed.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import parse_json, read_json
from fewer.core.modules import find_modules, set_module
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.compact import compact, expand
from fewer.generate.lora_file import LowRank, finite, read_pairs

_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_MOST_ALPHA = 1e9
DEFAULT_TARGETS = ("to_q", "to_k", "to_v")


class AdaptedLayer(nn.Module):
    """A layer and the adapters on it, each with its own scale."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.downs = nn.ParameterDict()
        self.ups = nn.ParameterDict()
        self.strengths: dict[str, float] = {}
        self.scales: dict[str, float] = {}
        self.tokens: dict[str, object] = {}
        """Tell an adapter from one that is put here later; an address in memory would come again."""

    @property
    def weight(self) -> Tensor:
        """The layer's own weight: code that asks for its dtype or device keeps working."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight

    def put(self, name: str, low_rank: LowRank, scale: float) -> None:
        """Adds an adapter under `name`, its factors on the layer's device."""
        device = self.weight.device
        self.downs[name] = nn.Parameter(low_rank.down.to(device))
        self.ups[name] = nn.Parameter(low_rank.up.to(device))
        self.strengths[name], self.scales[name], self.tokens[name] = low_rank.strength, scale, object()

    def take_off(self, name: str) -> None:
        """Removes the adapter called `name` if it is here."""
        if name in self.scales:
            del self.downs[name], self.ups[name]
            del self.strengths[name], self.scales[name], self.tokens[name]

    def low_rank(self, name: str) -> LowRank:
        """The adapter called `name` as it is now."""
        down = self.downs[name]
        return LowRank(down, self.ups[name], self.strengths[name] * down.shape[0])

    def forward(self, inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*result"]:
        result = self.layer(inputs)
        # a 1x1 convolution is a linear layer on axis 1
        image = inputs.ndim == 4 and getattr(self.layer, "channels_first", type(self.layer) is not nn.Linear)
        rows = inputs.movedim(1, -1) if image else inputs
        for added in self.added(rows):
            result = result + (added.movedim(-1, 1) if image else added)
        return result

    def added(self, rows: Float[Tensor, "*rows inputs"]) -> Iterator[Tensor]:
        """What each adapter that is not at strength 0 adds to the layer's output for `rows`."""
        for name, scale in self.scales.items():
            if scale:
                yield self.low_rank(name).product(rows, scale)


def rows_through(layer: nn.Module, rows: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
    """A linear layer or 1x1 convolution of rows, as one product, and the adapters that are on it."""
    inner = layer.layer if isinstance(layer, AdaptedLayer) else layer
    result = linear(rows, inner.weight.flatten(1), inner.bias)  # pyright: ignore
    for added in layer.added(rows) if isinstance(layer, AdaptedLayer) else ():
        result = result + added
    return result


def whole_weight(layer: nn.Module) -> Float[Tensor, "outputs inputs"]:
    """The weight of a linear layer with what its adapters add: W + sum_i s_i (alpha_i / r_i) B_i A_i."""
    inner = layer.layer if isinstance(layer, AdaptedLayer) else layer
    weight: Tensor = inner.weight.flatten(1)  # pyright: ignore
    for name, scale in layer.scales.items() if isinstance(layer, AdaptedLayer) else ():
        if scale:
            one = layer.low_rank(name)  # pyright: ignore
            weight = weight + (one.up @ one.down * (scale * one.strength)).to(weight.dtype)
    return weight


def attach(model: nn.Module, adapter: Mapping[str, LowRank], *, name: str, scale: float = 1.0) -> nn.Module:
    """Puts an adapter on the layers it names and returns the model. Several may share a layer.

    Raises `ConfigError` for a taken name, `FileError` listing layers that do not exist or do not fit; then
    nothing has changed.
    """
    if not name.isidentifier():
        raise ConfigError(f"adapter name {name!r} must be letters, digits and underscores")
    layers = dict(find_modules(model, lambda path, _: path in adapter))
    problems = [f"no layer {path}" for path in sorted(adapter.keys() - layers.keys())]
    for path, module in layers.items():
        inner = module.layer if isinstance(module, AdaptedLayer) else module
        if isinstance(module, AdaptedLayer) and name in module.downs:
            raise ConfigError(
                f"an adapter called {name!r} is already attached; detach it or choose another name"
            )
        shape = linear_shape(inner)
        wanted = (adapter[path].up.shape[0], adapter[path].down.shape[1])
        if shape is None or shape != wanted or adapter[path].up.shape[1] != adapter[path].down.shape[0]:
            problems.append(f"{path} is {shape or type(inner).__name__}, the adapter is for {wanted}")
    if problems:
        raise FileError(f"adapter {name!r} does not fit this model: {'; '.join(problems[:20])}")
    for path, module in layers.items():
        adapted = module if isinstance(module, AdaptedLayer) else AdaptedLayer(module)
        adapted.put(name, adapter[path], scale)
        if adapted is not module:
            set_module(model, path, adapted)
    return model


def set_scale(model: nn.Module, name: str, scale: float) -> None:
    """Changes an adapter's strength without loading anything. Raises `ConfigError` if it is not attached."""
    found = [
        module for module in model.modules() if isinstance(module, AdaptedLayer) and name in module.scales
    ]
    if not found:
        raise ConfigError(f"no adapter called {name!r} is attached")
    for module in found:
        module.scales[name] = scale


def detach(model: nn.Module) -> nn.Module:
    """Takes off all adapters: the model is what it was before, the very same layers."""
    for path, module in list(find_modules(model, lambda _, module: isinstance(module, AdaptedLayer))):
        assert isinstance(module, AdaptedLayer)
        set_module(model, path, module.layer)
    return model


def collect(model: nn.Module, name: str) -> dict[str, LowRank]:
    """The adapter called `name` as it is now, for instance after training."""
    found = {}
    for path, module in find_modules(model, lambda _, module: isinstance(module, AdaptedLayer)):
        assert isinstance(module, AdaptedLayer)
        if name in module.downs:
            now = module.low_rank(name)
            found[path] = LowRank(now.down.detach(), now.up.detach(), now.alpha)
    return found


def fresh(
    model: nn.Module,
    rank: int,
    generator: torch.Generator,
    *,
    alpha: float | None = None,
    targets: tuple[str, ...] = DEFAULT_TARGETS,
) -> dict[str, LowRank]:
    """A new adapter for every layer whose last name is in `targets`; it changes nothing until it is trained.

    Raises `ConfigError` if no layer matches or the rank is not positive.
    """
    if rank < 1:
        raise ConfigError(f"rank was {rank}; it must be 1 or more, 16 is usual")
    adapter = {}
    for path, module in find_modules(model, lambda path, _: path.rpartition(".")[2] in targets):
        shape = linear_shape(module)
        if shape is None:
            continue
        down = torch.randn(rank, shape[1], generator=generator) / rank
        adapter[path] = LowRank(down, torch.zeros(shape[0], rank), float(alpha or rank))
    if not adapter:
        raise ConfigError(f"no linear layer is called {' or '.join(targets)}")
    return adapter


def read_lora(path: str | Path) -> dict[str, LowRank]:
    """An adapter from a PEFT file or folder, its layers under our names.

    Takes alpha from the file's metadata, an `.alpha` tensor or adapter_config.json, else the rank. Factors of
    a byte a weight (`write_lora` with `small`) come back in bf16.
    Raises `FileError` naming what is not understood.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in _FILES if (path / name).exists()), path / _FILES[0])
    _, metadata = tensor_header(path)
    general = _general_alpha(metadata, path.parent / "adapter_config.json")
    try:
        pairs = read_pairs(expand(read_tensors(path)), general)
    except FileError as error:
        raise FileError(f"{path.name!r} is no adapter of linear layers: {error}") from error
    for layer, low_rank in pairs.items():
        if not finite(low_rank):
            raise FileError(
                f"{path.name!r}: the factors of {layer!r} have NaN or Inf; the adapter is damaged"
            )
    return {_own_name(layer): low_rank for layer, low_rank in pairs.items()}


def in_dtype(adapter: Mapping[str, LowRank], dtype: torch.dtype) -> dict[str, LowRank]:
    """The adapter with factors of another number format."""
    return {layer: LowRank(one.down.to(dtype), one.up.to(dtype), one.alpha) for layer, one in adapter.items()}


def write_lora(path: str | Path, adapter: Mapping[str, LowRank], *, small: bool = False) -> Path:
    """Writes an adapter as diffusers and PEFT read it (`transformer.` names, alpha in the metadata).

    `small` takes a byte a weight, half of bf16: for adapters that travel with a package, read here alone.
    """
    path = Path(path)
    tensors, metadata = lora_tensors(adapter)
    write_tensors(path, compact(tensors) if small else tensors, metadata)
    return path


def lora_tensors(adapter: Mapping[str, LowRank]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of an adapter's file."""
    tensors: dict[str, Tensor] = {}
    for layer, low_rank in adapter.items():
        tensors[f"transformer.{layer}.lora_A.weight"] = low_rank.down
        tensors[f"transformer.{layer}.lora_B.weight"] = low_rank.up
    first = next(iter(adapter.values()))
    facts = {"transformer.r": first.down.shape[0], "transformer.lora_alpha": first.alpha}
    facts["transformer.target_modules"] = sorted({layer.rpartition(".")[2] for layer in adapter})
    return tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(facts)}


def parse_lora(text: str) -> tuple[Path, float]:
    """FILE[:SCALE]. Raises `ConfigError` if the scale is no finite number."""
    file, colon, scale = text.rpartition(":")
    if not colon or "/" in scale or "\\" in scale or scale.endswith(".safetensors"):
        return Path(text), 1.0
    try:
        value = float(scale)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1000:
        raise ConfigError(f"lora {text!r}: {scale!r} is no strength; write FILE:0.8, numbers below 1000")
    return Path(file), value


def _own_name(layer: str) -> str:
    """A layer's name without what PEFT and diffusers put before it."""
    return layer.removeprefix("base_model.model.").removeprefix("transformer.")


def _general_alpha(metadata: Mapping[str, str], config: Path) -> float | None:
    facts: object = {}
    if "lora_adapter_metadata" in metadata:
        facts = parse_json(metadata["lora_adapter_metadata"], "the adapter's metadata")
    elif config.exists():
        facts = read_json(config)
    alpha = facts.get("transformer.lora_alpha", facts.get("lora_alpha")) if isinstance(facts, dict) else None
    return float(alpha) if isinstance(alpha, int | float) and 0 < alpha < _MOST_ALPHA else None


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear layer or 1x1 convolution; also of a replacement that says so."""
    if isinstance(module, AdaptedLayer):
        return linear_shape(module.layer)
    if isinstance(module, nn.Conv2d):
        return (module.out_channels, module.in_channels) if module.kernel_size == (1, 1) else None
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)  # pyright: ignore
    return None
