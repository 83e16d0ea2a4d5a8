"""Giving a module another class without touching it: how the engine attaches from outside."""

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def shell(cls: type[M], original: nn.Module) -> M:
    """An instance of `cls` with the original's attributes, tensors and submodules.

    It has dictionaries of its own, so replacing a submodule of the one leaves the other as it is.
    """
    module = cls.__new__(cls)
    module.__dict__.update(original.__dict__)
    for name in ("_modules", "_parameters", "_buffers"):
        module.__dict__[name] = dict(original.__dict__[name])
    return module
