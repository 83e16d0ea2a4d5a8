"""Noise to picture by the flow solvers, with weights merged beforehand for every step."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.device import seeded
from fewer.core.errors import ConfigError
from fewer.generate.conditional.build import params_of
from fewer.generate.conditional.condition import ConditionAware, MergedSchedule
from fewer.generate.sampling.guidance import combine
from fewer.generate.sampling.sampler import Step, VelocityFn, sample
from fewer.generate.sampling.schedule import TRAINING_LEVELS, flow_dpm_levels


@torch.no_grad()
def draw_class(
    model: nn.Module, label: int, seeds: list[int], steps: int = 20, guidance: float = 1.5, shift: float = 1.0
) -> Iterator[Step]:
    """Steps towards one picture a seed, all of class `label`; `step.latents` of the last one is in [-1, 1].

    Raises `ConfigError` for a class that the network does not know.
    """
    params = params_of(model)
    if not 0 <= label < params.classes:
        raise ConfigError(f"class {label} is out of range; allowed: 0 to {params.classes - 1}")
    device = next(model.parameters()).device
    shape = (params.channels, params.size, params.size)
    noise = torch.stack([torch.randn(shape, generator=seeded(seed)) for seed in seeds]).to(device)
    levels = flow_dpm_levels(steps, shift).tolist()
    positive = _velocity(model, label, levels, len(seeds))
    negative = _velocity(model, params.classes, levels, len(seeds)) if guidance != 1 else None

    def velocity(latents: Tensor, timestep: float) -> Tensor:
        if negative is None:
            return positive(latents, timestep)
        return combine(negative(latents, timestep), positive(latents, timestep), guidance)

    yield from sample(velocity, noise, steps, shift, levels=levels, time="unit")


def _velocity(model: nn.Module, label: int, levels: list[float], count: int) -> VelocityFn:
    """One plain module a step: for a condition-aware network, the merged one."""
    first = next(model.parameters())
    device = first.device
    labels = torch.full((count,), label, device=device)
    merged: MergedSchedule | None = None
    if isinstance(model, ConditionAware):
        times = torch.tensor(levels[:-1], device=device) * TRAINING_LEVELS
        merged = MergedSchedule(model, model.embed(times, labels[:1].expand(len(times))))

    def velocity(latents: Tensor, level: float) -> Tensor:
        network = model if merged is None else merged.at(levels.index(level))
        time = torch.full((count,), level * TRAINING_LEVELS, device=device)
        return network(latents.to(first.dtype), time, labels)[:, : latents.shape[1]].float()

    return velocity


def to_pictures(latents: Float[Tensor, "batch channels lat_h lat_w"]) -> list:
    """Pillow pictures of values in [-1, 1]."""
    from PIL import Image

    levels = ((latents.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return [
        Image.fromarray(one[0].numpy() if len(one) == 1 else one.permute(1, 2, 0).contiguous().numpy())
        for one in levels
    ]
