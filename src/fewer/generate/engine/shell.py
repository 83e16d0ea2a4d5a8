"""Giving a module another class without touching it: how the engine attaches from outside."""

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def shell(cls: type[M], original: nn.Module) -> M:
    """An instance of `cls` with the original's attributes, tensors and submodules.

    It has dictionaries of its own, so replacing a submodule of the one leaves the other as it is.
    """
    module = cls.__new__(cls)
    # Hooks, flags and an adapter's strengths too: what is set in the one must not appear in the other.
    for name, value in original.__dict__.items():
        module.__dict__[name] = value.copy() if isinstance(value, dict) else value
    return module


def shell_tree(cls: type[M], original: nn.Module) -> M:
    """As `shell`, down to the leaves: a layer replaced anywhere in the one leaves the other as it is."""
    shells: dict[int, nn.Module] = {}

    def visit(kind: type[nn.Module], module: nn.Module) -> nn.Module:
        if id(module) not in shells:  # a module that stands in two places stays one
            shells[id(module)] = shell(kind, module)
            for name, child in module._modules.items():
                if child is not None:
                    shells[id(module)]._modules[name] = visit(type(child), child)
        return shells[id(module)]

    module = visit(cls, original)
    assert isinstance(module, cls)
    return module
