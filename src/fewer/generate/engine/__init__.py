"""The engine: networks run through `fewer.kernels` and CUDA graphs, attached from outside."""

import importlib

_WHERE = {"accelerate": "attach", "StepGraphs": "graphs"}
__all__ = tuple(_WHERE)


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"fewer.generate.engine has no {name!r}")
    return getattr(importlib.import_module(f"fewer.generate.engine.{_WHERE[name]}"), name)
