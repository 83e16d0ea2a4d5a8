"""A new condition for a frozen network: only generators and a table of names are trained and saved.

    can = adapter(transformer, ["flat", "glossy"], ConditionPlan(rank=16))
    velocity = can(latents, timestep, text, mask, condition=styles)      # styles: (batch,) numbers
    plain = can.merge(can.embed(torch.tensor([1])))                      # an ordinary SanaTransformer

The merged network is an ordinary one: it can be saved, quantized and spread over devices like any other.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.conditional.condition import ConditionAware, ConditionPlan, condition_aware
from fewer.generate.conditional.naming import generator_names

FORMAT = "fewer-can"


class NamedCondition(nn.Module):
    """One trained vector a name: a style, a camera, a domain."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        if not names:
            raise ConfigError("an adapter needs at least one name of a condition")
        self.names = tuple(names)
        self.table = nn.Embedding(len(names), width)

    def forward(
        self, base: nn.Module, condition: Int64[Tensor, " batch"] | None, *inputs: object, **named: object
    ) -> Float[Tensor, "batch condition_dim"]:
        """Raises `ConfigError` without a condition, or for one that has no name."""
        if condition is None:
            raise ConfigError(f"condition= is missing; give numbers of {', '.join(self.names)}")
        return self.embed(base, condition)

    def embed(
        self, base: nn.Module, condition: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch condition_dim"]:
        """Raises `ConfigError` for a number that names nothing."""
        if condition.numel() and not 0 <= int(condition.min()) <= int(condition.max()) < len(self.names):
            raise ConfigError(
                f"condition {condition.tolist()} is out of range; allowed: 0 to {len(self.names) - 1} "
                f"({', '.join(self.names)})"
            )
        return self.table(condition)


def adapter(base: nn.Module, names: Sequence[str], plan: ConditionPlan, width: int = 64) -> ConditionAware:
    """Freezes `base` and makes it follow a new condition. Only the adapter's parameters ask for gradients."""
    base.requires_grad_(False)
    return condition_aware(base, plan, NamedCondition(names, width), width)


def adapter_parameters(model: ConditionAware) -> list[nn.Parameter]:
    """What an optimizer of an adapter gets."""
    return [*model.can.parameters(), *model.source.parameters()]


def save_adapter(model: ConditionAware, path: Path) -> None:
    """Writes generators and table alone, with the hash of the base they belong to."""
    source = model.source
    if not isinstance(source, NamedCondition):
        raise ConfigError("only adapters made by adapter() are saved alone; save the whole model instead")
    tensors = {
        f"{prefix}.{name}": tensor
        for key, prefix in generator_names(model).items()
        for name, tensor in model.can[key].state_dict().items()
    }
    tensors["can.condition.table"] = source.table.weight
    plan = model.plan
    facts = {
        "format": FORMAT,
        "kind": plan.kind,
        "targets": ",".join(plan.targets),
        "rank": str(plan.rank),
        "kernels": str(plan.kernels),
        "names": json.dumps(source.names),
        "base_sha256": base_digest(model.static_twin()),
    }
    write_tensors(Path(path), tensors, facts)


def load_adapter(base: nn.Module, path: Path) -> ConditionAware:
    """Puts a saved adapter on its base. Raises `FileError` for another base or a file that is no adapter."""
    path = Path(path)
    _, facts = tensor_header(path)
    if facts.get("format") != FORMAT:
        raise FileError(
            f"{path.name!r} is no adapter of ours (format {facts.get('format')!r}, not {FORMAT!r})"
        )
    if facts.get("base_sha256") != base_digest(base):
        raise FileError(
            f"{path.name!r} was trained on another base: its hash is {facts.get('base_sha256', '')[:12]}, "
            f"this network's {base_digest(base)[:12]}; load the network it was trained on"
        )
    try:
        names = json.loads(facts["names"])
        rank = None if facts["rank"] == "None" else int(facts["rank"])
        settings = {"kind": facts["kind"], "targets": tuple(facts["targets"].split(",")), "rank": rank}
        plan = validate(ConditionPlan, settings | {"kernels": int(facts["kernels"])})
        tensors = read_tensors(path)
        table = tensors.pop("can.condition.table")
        if not isinstance(names, list) or table.ndim != 2 or len(names) != len(table):
            raise ValueError("names and table differ")
    except (KeyError, ValueError) as error:
        raise FileError(f"{path.name!r} has damaged facts: {error}") from error
    model = adapter(base, [str(name) for name in names], plan, table.shape[1])
    wanted = {
        f"{prefix}.{name}": tensor
        for key, prefix in generator_names(model).items()
        for name, tensor in model.can[key].state_dict(keep_vars=True).items()
    }
    wrong = sorted(
        set(wanted) ^ set(tensors)
        | {n for n in set(wanted) & set(tensors) if wanted[n].shape != tensors[n].shape}
    )
    if wrong:
        raise FileError(f"{path.name!r} does not fit its own plan: {', '.join(wrong[:5])}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
        model.source.table.weight.copy_(table)  # pyright: ignore
    return model


def base_digest(base: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all tensors of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
