"""Before the first exchange: do all ranks hold the same model, plan and request? If not, say who differs."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.parallel.group import Group


def check_agreement(group: Group, facts: Mapping[str, object], module: nn.Module | None = None) -> None:
    """Raises `ConfigError` on every rank, naming the ranks and the facts that differ from the majority's."""
    if group.size == 1:
        return
    own = {name: json.dumps(value, default=str) for name, value in facts.items()}
    if module is not None:
        own |= fingerprint(module)
    everyone = [dict(values) for values in group.gather_object(own)]  # type: ignore[call-overload]
    complaints = []
    for name in sorted(set().union(*everyone)):
        values = [values.get(name, "absent") for values in everyone]
        usual = Counter(values).most_common(1)[0][0]
        odd = [f"rank {rank} has {value}" for rank, value in enumerate(values) if value != usual]
        if odd:
            complaints.append(f"{name} is {usual}, but {', '.join(odd)}")
    if complaints:
        raise ConfigError(
            f"the ranks don't agree: {'; '.join(complaints)}; start all with the same arguments"
        )


class Agreement:
    """Asks the ranks of a group whether they were asked for the same, before they compute anything.

    Whether to ask is every rank's own decision: at the first step of a picture, which all of them come to.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self._facts: Mapping[str, object] | None = None
        self._time = float("inf")

    def check(self, facts: Mapping[str, object], time: float = 0.0, begins: bool = False) -> bool:
        """Whether this was a new request: other facts, a later time than before, or one that `begins`.

        Raises `ConfigError` on every rank, naming the odd one, where the facts of a new request differ.
        """
        new = begins or time > self._time or facts != self._facts
        self._time = time
        if new:
            self._facts = None  # of a request that is refused nothing is known
            check_agreement(self.group, facts)
            self._facts = facts
        return new


def picture_facts(latents: Tensor) -> dict[str, object]:
    """What every network on bands is asked for."""
    return {"latents": list(latents.shape), "number format": str(latents.dtype)}


def fingerprint(module: nn.Module) -> dict[str, str]:
    """Short digests of names, shapes, dtypes and values of all tensors, and of adapters."""
    layout, values, adapters = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for name, tensor in module.state_dict().items():
        layout.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        values.update(_sums(tensor).encode())
    for name, part in module.named_modules():
        for kind in ("scales", "strengths", "adapters"):
            held = getattr(part, kind, None)
            for key, value in held.items() if isinstance(held, dict) else ():
                said = str(value) if isinstance(value, float | int) else _adapter_sums(value)
                adapters.update(f"{name} {kind} {key} {said}".encode())
    return {
        "tensors": layout.hexdigest()[:12],
        "weights": values.hexdigest()[:12],
        "adapters": adapters.hexdigest()[:12],
    }


def _sums(tensor: Tensor) -> str:
    """Cheap and telling: the sum, and the rows' sums weighted by their places."""
    wide = tensor.detach().to(torch.float64 if tensor.is_floating_point() else torch.int64)
    rows = wide.reshape(len(wide), -1).sum(1) if wide.ndim and wide.numel() else wide.reshape(-1)
    places = torch.arange(1, len(rows) + 1, device=rows.device, dtype=rows.dtype)
    return f"{rows.sum().item()} {(rows * places).sum().item()}"


def _adapter_sums(adapter: object) -> str:
    """Of an adapter beside a layer's own tensors."""
    factors = [getattr(adapter, part, None) for part in ("down", "up")]
    sums = [_sums(factor) for factor in factors if isinstance(factor, Tensor)]
    return f"{getattr(adapter, 'strength', None)} {sums}"
