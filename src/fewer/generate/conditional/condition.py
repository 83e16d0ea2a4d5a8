"""Condition-aware networks (CAN, arXiv 2404.01143): a function from a module to a module whose chosen layers
get an addition to their weights, generated from the condition.

    can = condition_aware(model, ConditionPlan(), ModelCondition(), model.params.width)
    velocity = can(latents, timestep, labels)          # training: every sample has its own weights
    static = can.merge(can.embed(timestep, labels))    # inference: a plain module for one condition

Zero-initialised generators leave the output bit for bit what it was, so any trained network can be upgraded.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.core.modules import set_module
from fewer.generate.conditional.layers import ConditionAwareLayer, Form, is_depthwise_3x3
from fewer.generate.conditional.targets import ConditionPlan, build_generator, planned_layers


class ModelCondition(nn.Module):
    """The condition is the network's own: time plus class."""

    def forward(
        self, base: nn.Module, condition: Tensor | None, latents: Tensor, timestep: Tensor, labels: Tensor
    ) -> Float[Tensor, "batch condition_dim"]:
        return self.embed(base, timestep, labels)

    def embed(
        self, base: nn.Module, timestep: Tensor, labels: Tensor
    ) -> Float[Tensor, "batch condition_dim"]:
        """Without latents: what `ConditionAware.embed` gives."""
        return base.condition(timestep, labels)  # pyright: ignore[reportCallIssue]


class ConditionAware(nn.Module):
    """A network, the generators of its chosen layers, and where the condition comes from."""

    def __init__(
        self, base: nn.Module, plan: ConditionPlan, source: nn.Module, generators: dict[str, nn.Module],
        layers: dict[str, list[str]],
    ) -> None:  # fmt: skip
        super().__init__()
        self.base = base
        self.plan = plan
        self.source = source
        self.can = nn.ModuleDict(generators)
        self.layers = layers
        """Generator -> the layers that its weights are added to."""

    def forward(self, *inputs: object, condition: Tensor | None = None, **named: object) -> Tensor:
        """As the network's own, with weights generated per sample; `condition` is for sources that ask."""
        with self.bound(self.source(self.base, condition, *inputs, **named)):
            return self.base(*inputs, **named)

    def embed(self, *inputs: Tensor) -> Float[Tensor, "batch condition_dim"]:
        """The condition embedding, for `merge` and `MergedSchedule`."""
        return self.source.embed(self.base, *inputs)  # pyright: ignore[reportCallIssue]

    @contextmanager
    def bound(self, condition: Float[Tensor, "batch condition_dim"]) -> Iterator[None]:
        """Inside, the layers use weights generated from `condition`, one row a sample."""
        try:
            for key, generator in self.can.items():
                addition = generator(_in_dtype_of(generator, condition))
                for name in self.layers[key]:
                    self.layer(name).addition = addition
            yield
        finally:
            for names in self.layers.values():
                for name in names:
                    self.layer(name).addition = None

    def layer(self, name: str) -> ConditionAwareLayer:
        """The condition-aware layer of that name inside the network."""
        layer = self.base.get_submodule(name)
        assert isinstance(layer, ConditionAwareLayer)
        return layer

    def static_twin(self) -> nn.Module:
        """A copy of the network as it was before, without any condition in its weights."""
        twin = copy.deepcopy(self.base)
        for names in self.layers.values():
            for name in names:
                set_module(twin, name, twin.get_submodule(name).static)  # pyright: ignore[reportArgumentType]
        return twin

    @torch.no_grad()
    def merge(self, condition: Float[Tensor, "conditions condition_dim"]) -> nn.Module:
        """A plain copy with the weights of one condition (one row): the static twin's cost, no generator.

        Raises `ConfigError` for more than one condition, or layers whose weight is not a plain tensor.
        """
        if condition.shape[0] != 1:
            raise ConfigError(f"{condition.shape[0]} conditions were given; a merged network has one")
        return MergedSchedule(self, condition).at(0)


class MergedSchedule:
    """Weights of every step of a fixed schedule, generated beforehand, run by one plain module.

    Memory: one set of generated weights a step (a shared matrix counts once). For guidance make one
    schedule for the class and one for "no class": then a step costs what the static network costs.
    """

    @torch.no_grad()
    def __init__(self, model: ConditionAware, conditions: Float[Tensor, "steps condition_dim"]) -> None:
        self.module = model.static_twin().requires_grad_(False)
        self._additions = {
            key: generator(_in_dtype_of(generator, conditions)) for key, generator in model.can.items()
        }
        self._layers = model.layers
        self._weights: dict[str, Tensor] = {}
        for names in self._layers.values():
            for name in names:
                weight = getattr(self.module.get_submodule(name), "weight", None)
                if not isinstance(weight, nn.Parameter):
                    raise ConfigError(f"layer {name!r} has no plain weight to merge into (is it quantized?)")
                self._weights[name] = weight.detach().clone()

    def __len__(self) -> int:
        return len(next(iter(self._additions.values())))

    @torch.no_grad()
    def at(self, step: int) -> nn.Module:
        """The module with the weights of that step; the same object each time, changed in place."""
        for key, names in self._layers.items():
            for name in names:
                weight = self._weights[name]
                addition = self._additions[key][step].to(weight.dtype)
                self.module.get_submodule(name).weight.copy_(weight + addition)  # pyright: ignore
        return self.module


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors are, quantized ones (buffers) included; the CPU where it has none."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _in_dtype_of(generator: nn.Module, condition: Tensor) -> Tensor:
    """Generators may stay in fp32 on a base of 16 bits, to be trained; autocast sees to itself."""
    if torch.is_autocast_enabled(condition.device.type):
        return condition
    return condition.to(next(generator.parameters()).dtype)


def condition_aware(
    base: nn.Module, plan: ConditionPlan, source: nn.Module, condition_dim: int
) -> ConditionAware:
    """Makes the plan's layers of `base` follow the condition; `base` is changed in place and kept inside.
    Generators are made in fp32 on the device of `base`, whatever its dtype.

    `source(base, condition, *inputs)` gives the condition embedding of width `condition_dim`. Raises
    `ConfigError` for an unknown target, or one that the network does not have.
    """
    layers = planned_layers(base, plan)
    device = device_of(base)
    generators = {
        key: build_generator(plan, base.get_submodule(names[0]), condition_dim).to(device)
        for key, names in layers.items()
    }
    for names in layers.values():
        for name in names:
            static = base.get_submodule(name)
            form: Form = "split" if plan.form == "fused" and not is_depthwise_3x3(static) else plan.form
            set_module(base, name, ConditionAwareLayer(static, form))
    return ConditionAware(base, plan, source, generators, layers)
