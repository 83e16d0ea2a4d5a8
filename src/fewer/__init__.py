"""fewer: ten research systems that do more with fewer bits, tokens, steps, labels, samples and parameters.

The rooms (`fewer.generate`, `fewer.quantize`, …) are imported on first use, so `import fewer` costs nothing.
"""

import importlib
from types import ModuleType

_ROOMS = ("core", "generate", "kernels", "learn", "parallel", "quantize", "recommend", "serve", "stitch")

__all__ = list(_ROOMS)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"fewer.{name}")
    raise AttributeError(f"module 'fewer' has no attribute {name!r}")
