"""Before the first exchange: do all ranks hold the same model, plan and request? If not, say who differs."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn

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


def fingerprint(module: nn.Module) -> dict[str, str]:
    """Short digests of names, shapes, dtypes and values of all tensors (values: sums, cheap and telling)."""
    layout, values = hashlib.sha256(), hashlib.sha256()
    for name, tensor in module.state_dict().items():
        layout.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        wide = torch.float64 if tensor.is_floating_point() else torch.int64
        values.update(str(tensor.to(wide).sum().item()).encode())
    return {"tensors": layout.hexdigest()[:12], "weights": values.hexdigest()[:12]}
