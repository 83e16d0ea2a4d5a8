"""16-bit module -> 4-bit module: the public names, each imported on first use."""

import importlib

_PUBLIC = {
    "quantize": "svdquant",
    "Recipe": "recipe",
    "FAST": "recipe",
    "plan_layers": "roles",
    "Plan": "roles",
    "Rule": "roles",
    "QuantizedLinear": "linear",
    "QuantizedLayer": "layer",
    "LayerReport": "measure",
    "load_model": "load",
    "convert": "conversion",
    "attach": "adapters",
    "detach": "adapters",
    "set_strength": "adapters",
    "package_transformer": "package",
    "package_adapter": "even_factors",
    "package_model": "package_folder",
}

__all__ = list(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"fewer.quantize.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'fewer.quantize' has no attribute {name!r}")
