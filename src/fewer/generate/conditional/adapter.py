"""A new condition for a frozen network: only generators and a table of names are trained and saved.

    can = adapter(transformer, ["flat", "glossy"], ConditionPlan(rank=16))
    velocity = can(latents, timestep, text, mask, condition=styles)      # styles: (batch,) numbers
    train_transformer(AtCondition(can, "glossy"), pictures, training)    # the base stays frozen
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

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import parse_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.conditional.condition import ConditionAware, condition_aware, device_of
from fewer.generate.conditional.generator_files import (
    check_generators,
    fill_generators,
    generator_tensors,
    plan_facts,
    read_plan,
)
from fewer.generate.conditional.targets import ConditionPlan

FORMAT = "fewer-can"


class NamedCondition(nn.Module):
    """One trained vector a name: a style, a camera, a domain."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        if not names:
            raise ConfigError("an adapter needs at least one name of a condition")
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ConfigError(f"the condition {twice!r} is named twice; each needs a name of its own")
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


class AtCondition(nn.Module):
    """An adapter set to one of its names, called like the network that it adapts: to train it, or draw.

    Raises `ConfigError` for a name that the adapter does not have.
    """

    def __init__(self, model: ConditionAware, name: str) -> None:
        super().__init__()
        names = model.source.names if isinstance(model.source, NamedCondition) else ()
        if name not in names:
            raise ConfigError(f"condition {name!r} is not known; allowed: {', '.join(names) or 'none'}")
        self.model = model
        self.number = names.index(name)

    def forward(self, latents: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        numbers = torch.full((len(latents),), self.number, device=latents.device)
        return self.model(latents, *inputs, condition=numbers, **named)


def adapter(base: nn.Module, names: Sequence[str], plan: ConditionPlan, width: int = 64) -> ConditionAware:
    """Freezes `base` and makes it follow a new condition. Only the adapter's parameters ask for gradients."""
    base.requires_grad_(False)
    return condition_aware(base, plan, NamedCondition(names, width).to(device_of(base)), width)


def adapter_parameters(model: ConditionAware) -> list[nn.Parameter]:
    """What an optimizer of an adapter gets."""
    return [*model.can.parameters(), *model.source.parameters()]


def save_adapter(model: ConditionAware, path: Path) -> None:
    """Writes generators and table alone, with the hash of the base they belong to."""
    source = model.source
    if not isinstance(source, NamedCondition):
        raise ConfigError("only adapters made by adapter() are saved alone; save the whole model instead")
    tensors = generator_tensors(model) | {"can.condition.table": source.table.weight}
    facts = {
        "format": FORMAT,
        **plan_facts(model.plan),
        "names": json.dumps(source.names),
        "base_sha256": base_digest(model.static_twin()),
    }
    write_tensors(Path(path), tensors, facts)


def load_adapter(base: nn.Module, path: Path) -> ConditionAware:
    """Puts a saved adapter on its base. Raises `FileError` for another base or a file that is no adapter."""
    path = Path(path)
    header, facts = tensor_header(path)
    if facts.get("format") != FORMAT:
        raise FileError(
            f"{path.name!r} is no adapter of ours (format {facts.get('format')!r}, not {FORMAT!r})"
        )
    if facts.get("base_sha256") != base_digest(base):
        raise FileError(
            f"{path.name!r} was trained on another base: its hash is {facts.get('base_sha256', '')[:12]}, "
            f"this network's {base_digest(base)[:12]}; load the network it was trained on"
        )
    plan = read_plan(facts, path.name)
    try:
        names = parse_json(facts["names"], "the list of names")
        table = header.pop("can.condition.table").shape
        if not isinstance(names, list) or len(table) != 2 or len(names) != table[0] or not names:
            raise ValueError("names and table differ")
    except (KeyError, ValueError) as error:
        raise FileError(f"{path.name!r} has damaged facts: {error}") from error
    check_generators(base, plan, table[1], header, path.name)
    tensors = read_tensors(path)
    model = adapter(base, [str(name) for name in names], plan, table[1])
    with torch.no_grad():
        model.source.table.weight.copy_(tensors.pop("can.condition.table"))  # pyright: ignore
    fill_generators(model, tensors)
    return model


def base_digest(base: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all tensors of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
