"""LoRA on a quantized model: attached beside the low-rank branch, never requantizing, gone without a trace.

A LoRA adds strength * alpha / r' * B A to a weight. The stored branch acts on the unsmoothed input, exactly
like A, so the adapter's ranks are simply appended to it (SVDQuant section 4.3). Layers that stayed in 16 bits
get a wrapper that adds the same product. No stored tensor is ever changed: removing an adapter leaves the
bytes that were there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewer.core.errors import ConfigError, FileError
from fewer.core.modules import set_module
from fewer.core.tensors import read_tensors
from fewer.quantize.linear import Adapter, QuantizedLinear
from fewer.quantize.roles import eligible

PREFIXES = ("base_model.model.", "transformer.", "unet.", "diffusion_model.", "model.")
_PAIRS = {  # suffix of a key -> which factor it holds
    "lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up", "lora.down": "down",
    "lora.up": "up",    "lora_linear_layer.down": "down", "lora_linear_layer.up": "up",
}  # fmt: skip
_FACTOR = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _PAIRS))})(\.default)?\.weight")
_UNSUPPORTED = re.compile(r"(lokr_|hada_|lora_mid|dora_scale|lora_magnitude_vector|oft_|\.diff$)")


@dataclass(slots=True)
class LowRankUpdate:
    """One layer's part of a LoRA file."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None

    def scale(self) -> float:
        """alpha / r'; 1 where the file gives no alpha."""
        assert self.down is not None
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]


class AdaptedLinear(nn.Module):
    """A 16-bit layer with adapters: base(x) + sum of strength * up(down(x)). The base is the untouched
    original.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.channels_first = isinstance(base, nn.Conv2d)
        self.adapters: dict[str, Adapter] = {}

    @property
    def weight(self) -> Tensor:
        """The base's weight, for models that look at its dtype."""
        return self.base.weight  # pyright: ignore

    def forward(self, inputs: Tensor) -> Tensor:
        moved = (inputs.movedim(1, -1) if self.channels_first else inputs).float()
        extra = sum(
            adapter.strength * (moved @ adapter.down.float().mT) @ adapter.up.float().mT
            for adapter in self.adapters.values()
        )
        assert isinstance(extra, Tensor)
        outputs = self.base(inputs)
        return outputs + (extra.movedim(-1, 1) if self.channels_first else extra).to(outputs.dtype)


def attach(
    module: nn.Module, source: Path | Mapping[str, Tensor], name: str = "default", strength: float = 1.0
) -> int:
    """Adds a LoRA (PEFT, diffusers or kohya names) under `name`; returns the number of layers it reaches.

    Raises `ConfigError` (name taken, LoKr/LoHa/DoRA, a width that does not fit, no layer of that name) or
    `FileError` (incomplete pairs), each naming the layer; the model is then unchanged.
    """
    if name in adapters_of(module):
        raise ConfigError(
            f"an adapter named {name!r} is attached already; detach it first or choose another name"
        )
    tensors = source if isinstance(source, Mapping) else read_tensors(source)
    updates = read_updates(tensors)
    targets = _targets(module)
    chosen = {key: _find(key, targets) for key in updates}
    for key, update in updates.items():
        _check(key, update, chosen[key], targets)
    for key, update in updates.items():
        _place(module, chosen[key], update, name, strength)
    return len(updates)


def set_strength(module: nn.Module, name: str, strength: float) -> None:
    """Changes an adapter's strength at once; nothing is loaded or computed again."""
    for adapter in _named(module, name):
        adapter.strength = strength * adapter.unit


def detach(module: nn.Module, name: str) -> None:
    """Removes an adapter. Every stored tensor is what it was before `attach`, byte for byte."""
    _named(module, name)
    for path, child in list(module.named_modules()):
        if isinstance(child, (QuantizedLinear, AdaptedLinear)):
            child.adapters.pop(name, None)
            if isinstance(child, AdaptedLinear) and not child.adapters:
                set_module(module, path, child.base)


def adapters_of(module: nn.Module) -> list[str]:
    """Names of all attached adapters."""
    found: dict[str, None] = {}
    for child in module.modules():
        if isinstance(child, (QuantizedLinear, AdaptedLinear)):
            found |= dict.fromkeys(child.adapters)
    return list(found)


def read_updates(tensors: Mapping[str, Tensor]) -> dict[str, LowRankUpdate]:
    """The pairs of a LoRA file by layer. Raises `ConfigError` for other kinds of adapters, `FileError` for
    halves.
    """
    updates: dict[str, LowRankUpdate] = {}
    for key, tensor in tensors.items():
        if _UNSUPPORTED.search(key):
            raise ConfigError(f"{key!r} is not a plain LoRA (LoKr, LoHa, DoRA and others are not supported)")
        if key.endswith(".alpha"):
            updates.setdefault(key.removesuffix(".alpha"), LowRankUpdate()).alpha = float(tensor)
            continue
        found = _FACTOR.fullmatch(key)
        if found is None:
            raise ConfigError(
                f"{key!r} is no LoRA tensor; expected names ending in lora_A.weight and lora_B.weight"
            )
        setattr(updates.setdefault(found[1], LowRankUpdate()), _PAIRS[found[2]], tensor.flatten(1))
    for key, update in updates.items():
        if update.down is None or update.up is None:
            raise FileError(f"the LoRA has only one of the two factors of layer {key!r}")
    return updates


def _targets(module: nn.Module) -> dict[str, nn.Module]:
    """Layers a LoRA can act on, by name; wrapped ones under the wrapper's name."""
    wrapped = {f"{name}.base" for name, child in module.named_modules() if isinstance(child, AdaptedLinear)}
    return {
        name: child
        for name, child in module.named_modules()
        if name not in wrapped and (isinstance(child, (QuantizedLinear, AdaptedLinear)) or eligible(child))
    }


def _find(key: str, targets: Mapping[str, nn.Module]) -> list[str]:
    """The layers a LoRA's name means: itself, both halves of a split layer, or a kohya name."""
    names = [key] + [key.removeprefix(prefix) for prefix in PREFIXES if key.startswith(prefix)]
    names.append(names[-1].removeprefix("transformer."))
    for name in names:
        if name in targets:
            return [name]
        halves = [f"{name}.{half}" for half in ("attention", "mlp")]
        if all(half in targets for half in halves):
            return halves
    flat = re.sub(r"^lora_(unet|transformer)_", "", key)
    matches = [name for name in targets if name.replace(".", "_") == flat]
    if matches:
        return matches
    raise ConfigError(f"the LoRA changes {key!r}, a layer that this model does not have")


def _check(key: str, update: LowRankUpdate, names: list[str], targets: Mapping[str, nn.Module]) -> None:
    assert update.down is not None and update.up is not None
    widths = [_shape(targets[name]) for name in names]
    out, dim = widths[0][0], sum(width for _, width in widths)
    rank = update.down.shape[0]
    if tuple(update.up.shape) != (out, rank) or tuple(update.down.shape) != (rank, dim):
        raise ConfigError(
            f"the LoRA of layer {key!r} is {tuple(update.up.shape)} x {tuple(update.down.shape)}, "
            f"but the layer is {out} x {dim}: it was made for another model"
        )
    if not (torch.isfinite(update.up).all() and torch.isfinite(update.down).all()):
        raise ConfigError(f"the LoRA of layer {key!r} has NaN or Inf")


def _shape(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, QuantizedLinear):
        return layer.out_features, layer.in_features
    out, dim = (layer.base if isinstance(layer, AdaptedLinear) else layer).weight.shape[:2]  # pyright: ignore
    return int(out), int(dim)


def _place(module: nn.Module, names: list[str], update: LowRankUpdate, adapter: str, strength: float) -> None:
    assert update.down is not None and update.up is not None
    column = 0
    for name in names:
        layer = module.get_submodule(name)
        if not isinstance(layer, (QuantizedLinear, AdaptedLinear)):
            layer = AdaptedLinear(layer)
            set_module(module, name, layer)
        dim = _shape(layer)[1]
        device = next(iter([*layer.buffers(), *layer.parameters()])).device
        down = update.down[:, column : column + dim].to(
            device
        )  # a split layer's halves read their own columns
        column += dim
        unit = update.scale()
        layer.adapters[adapter] = Adapter(down, update.up.to(device), strength * unit, unit)


def _named(module: nn.Module, name: str) -> list[Adapter]:
    found = [
        child.adapters[name]
        for child in module.modules()
        if isinstance(child, (QuantizedLinear, AdaptedLinear)) and name in child.adapters
    ]
    if not found:
        raise ConfigError(
            f"no adapter is named {name!r}; attached are: {', '.join(adapters_of(module)) or 'none'}"
        )
    return found
