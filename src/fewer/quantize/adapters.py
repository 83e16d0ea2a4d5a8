"""LoRA on a quantized model: attached beside the low-rank branch, never requantizing, gone without a trace.

A LoRA adds strength * alpha / r' * B A to a weight. The stored branch acts on the unsmoothed input, exactly
like A, so the adapter's ranks are simply appended to it (SVDQuant section 4.3). Layers that stayed in 16 bits
get a wrapper that adds the same product. No stored tensor is ever changed: removing an adapter leaves the
bytes that were there.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.core.modules import set_module
from fewer.generate.lora import AdaptedLayer, read_lora
from fewer.generate.lora_file import PREFIXES, LowRank, finite, read_pairs
from fewer.quantize.linear import Adapter, QuantizedLinear
from fewer.quantize.roles import eligible

Carrier = QuantizedLinear | AdaptedLayer


def attach(
    module: nn.Module, source: Path | Mapping[str, Tensor], name: str = "default", strength: float = 1.0
) -> int:
    """Adds a LoRA (PEFT, diffusers or kohya names) under `name`; returns the number of layers it reaches.

    A file's or folder's own alpha counts, wherever it stands (see `fewer.generate.lora.read_lora`).

    Raises `ConfigError` (name taken or no identifier, a strength that is no number, LoKr/LoHa/DoRA, a width
    that does not fit, no layer of that name, two pairs for one) or `FileError` (incomplete pairs, other
    tensors), each naming the layer; the model is then unchanged.
    """
    _check_strength(strength)
    if not name.isidentifier():
        raise ConfigError(f"adapter name {name!r} must be letters, digits and underscores")
    if name in adapters_of(module):
        raise ConfigError(
            f"an adapter named {name!r} is attached already; detach it first or choose another name"
        )
    updates = read_pairs(source) if isinstance(source, Mapping) else read_lora(source)
    targets = _targets(module)
    chosen = {key: _find(key, targets) for key in updates}
    _check_once(chosen)
    for key, update in updates.items():
        _check(key, update, chosen[key], targets)
    for key, update in updates.items():
        _place(module, chosen[key], update, name, strength)
    return len(updates)


def set_strength(module: nn.Module, name: str, strength: float) -> None:
    """Changes an adapter's strength at once; nothing is loaded or computed again. Raises `ConfigError`."""
    _check_strength(strength)
    for layer in _carriers(module, name):
        if isinstance(layer, AdaptedLayer):
            layer.scales[name] = strength
        else:
            present = layer.adapters[name]
            layer.adapters[name] = replace(present, strength=strength * present.unit)


def detach(module: nn.Module, name: str) -> None:
    """Removes an adapter. Every stored tensor is what it was before `attach`, byte for byte."""
    _carriers(module, name)
    for path, child in list(module.named_modules()):
        if isinstance(child, QuantizedLinear):
            child.adapters.pop(name, None)
        elif isinstance(child, AdaptedLayer):
            child.take_off(name)
            if not child.scales:
                set_module(module, path, child.layer)


def adapters_of(module: nn.Module) -> list[str]:
    """Names of all attached adapters."""
    found: dict[str, None] = {}
    for child in module.modules():
        if isinstance(child, QuantizedLinear):
            found |= dict.fromkeys(child.adapters)
        elif isinstance(child, AdaptedLayer):
            found |= dict.fromkeys(child.scales)
    return list(found)


def _check_strength(strength: float) -> None:
    if not math.isfinite(strength):
        raise ConfigError(f"strength was {strength}; it must be a finite number, 1.0 is the file's own")


def _check_once(chosen: Mapping[str, list[str]]) -> None:
    """Two pairs under two names of one layer would be one, the other lost."""
    first: dict[str, str] = {}
    for key, names in chosen.items():
        for name in names:
            if (other := first.setdefault(name, key)) != key:
                raise ConfigError(f"the LoRA has two pairs for layer {name!r}: {other!r} and {key!r}")


def _targets(module: nn.Module) -> dict[str, nn.Module]:
    """Layers a LoRA can act on, by name; wrapped ones under the wrapper's name."""
    wrapped = {f"{name}.layer" for name, child in module.named_modules() if isinstance(child, AdaptedLayer)}
    return {
        name: child
        for name, child in module.named_modules()
        if name not in wrapped and (isinstance(child, (QuantizedLinear, AdaptedLayer)) or eligible(child))
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


def _check(key: str, update: LowRank, names: list[str], targets: Mapping[str, nn.Module]) -> None:
    widths = [_shape(targets[name]) for name in names]
    out, dim = widths[0][0], sum(width for _, width in widths)
    rank = update.down.shape[0]
    if tuple(update.up.shape) != (out, rank) or tuple(update.down.shape) != (rank, dim):
        raise ConfigError(
            f"the LoRA of layer {key!r} is {tuple(update.up.shape)} x {tuple(update.down.shape)}, "
            f"but the layer is {out} x {dim}: it was made for another model"
        )
    if not finite(update):
        raise ConfigError(f"the LoRA of layer {key!r} has NaN or Inf")


def _shape(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, QuantizedLinear):
        return layer.out_features, layer.in_features
    out, dim = (layer.layer if isinstance(layer, AdaptedLayer) else layer).weight.shape[:2]  # pyright: ignore
    return int(out), int(dim)


def _place(module: nn.Module, names: list[str], update: LowRank, adapter: str, strength: float) -> None:
    column = 0
    for name in names:
        layer = module.get_submodule(name)
        if not isinstance(layer, Carrier):
            layer = AdaptedLayer(layer).requires_grad_(False)
            set_module(module, name, layer)
        dim = _shape(layer)[1]
        down = update.down[:, column : column + dim]  # a split layer's halves read their own columns
        column += dim
        if isinstance(layer, AdaptedLayer):
            layer.put(adapter, LowRank(down, update.up, update.alpha), strength)
            continue
        device, unit = layer.codes.device, update.strength
        layer.adapters[adapter] = Adapter(down.to(device), update.up.to(device), strength * unit, unit)


def _carriers(module: nn.Module, name: str) -> list[Carrier]:
    """The layers that carry the adapter called `name`; raises `ConfigError` if there are none."""
    found: list[Carrier] = [
        child
        for child in module.modules()
        if (isinstance(child, QuantizedLinear) and name in child.adapters)
        or (isinstance(child, AdaptedLayer) and name in child.scales)
    ]
    if not found:
        raise ConfigError(
            f"no adapter is named {name!r}; attached are: {', '.join(adapters_of(module)) or 'none'}"
        )
    return found
