"""Finding and replacing submodules: the one mechanism by which quantization, parallelism, LoRA, sparse
masks and conditional weights attach to a model from outside (`Module -> Module`)."""

from collections.abc import Callable, Iterator

from torch import nn

from fewer.core.errors import ConfigError


def find_modules(
    root: nn.Module, wanted: Callable[[str, nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    """Yields (dotted name, module) for every submodule that `wanted` accepts, in definition order."""
    for name, module in root.named_modules():
        if wanted(name, module):
            yield name, module


def replace_modules(root: nn.Module, build: Callable[[str, nn.Module], nn.Module | None]) -> list[str]:
    """Replaces in place each submodule for which `build(name, module)` gives a new one; returns their names.

    A replaced module is not descended into, and one that occurs twice is built once, so shared weights
    stay shared. The root itself cannot be replaced.
    """
    built: dict[int, nn.Module] = {}
    replaced: list[str] = []

    def visit(parent: nn.Module, prefix: str) -> None:
        # `named_children` would show a module that stands in two places only once.
        for child_name, child in list(parent._modules.items()):
            if child is None:
                continue
            name = f"{prefix}{child_name}"
            new = built.get(id(child)) or build(name, child)
            if new is None or new is child:
                visit(child, f"{name}.")
                continue
            built[id(child)] = new
            setattr(parent, child_name, new)
            replaced.append(name)

    visit(root, "")
    return replaced


def set_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Puts `new` at dotted `name`. Raises `ConfigError` if nothing is there."""
    parent_name, _, child_name = name.rpartition(".")
    try:
        parent = root.get_submodule(parent_name)
        parent.get_submodule(child_name)
    except AttributeError as error:
        raise ConfigError(f"the model has no submodule {name!r}") from error
    setattr(parent, child_name, new)


def other_names(root: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name -> further names of submodules that stand in several places, those inside them included."""
    first: dict[int, str] = {}
    found: dict[str, tuple[str, ...]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        if (home := first.setdefault(id(module), name)) != name:
            found[home] = (*found.get(home, ()), name)
    return found


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, each shared one counted once."""
    return sum(parameter.numel() for parameter in module.parameters())
