"""Networks without values, for a file to fill: built in no memory, and without importing torch's compiler.

`with torch.device("meta")` does the same, but torch answers every operation on such tensors from Python code
whose import takes seconds (its compiler comes along), longer than reading a small model.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)
_SCALINGS = ("__truediv__", "div", "__mul__", "__rmul__", "mul")


class without_values(TorchFunctionMode):
    """Inside, parameters that a module creates have shape and dtype and no memory (device "meta").

    Initialisation and scaling of such tensors do nothing. What a module computes otherwise, it computes.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = dict(kwargs or {})
        if func in _FACTORIES:
            given.pop("generator", None)
            return torch.empty(*args, **(given | {"device": "meta"}))  # type: ignore[arg-type]
        first = args[0] if args else given.get("tensor")
        if isinstance(first, Tensor) and first.is_meta:
            fills = getattr(func, "__module__", None) == "torch.nn.init" and func.__name__.endswith("_")
            if fills or func.__name__ in _SCALINGS:
                return first
        return func(*args, **given)
