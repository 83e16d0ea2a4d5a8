"""Classifier-free guidance, everywhere or in an interval of noise levels."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.errors import ConfigError
from fewer.generate.sampling.sampler import VelocityFn
from fewer.generate.sampling.schedule import TRAINING_LEVELS


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """How strongly to move away from the negative prompt, and between which noise levels."""

    scale: float = 4.5
    """1 or less turns guidance off."""
    start: float = 0.0
    """Lowest noise level at which it acts; outside the interval a step costs half (arXiv 2404.07724)."""
    end: float = 1.0

    def check(self) -> "Guidance":
        """Returns itself. Raises `ConfigError` for a value outside its range."""
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ConfigError(
                f"guidance was {self.scale}; it must be 0 or more; 4.5 is usual, 1 turns it off"
            )
        if not 0 <= self.start <= self.end <= 1:
            raise ConfigError(
                f"guidance interval {self.start}..{self.end} must rise within 0..1 (noise levels)"
            )
        return self

    @property
    def wanted(self) -> bool:
        """Whether it acts at all."""
        return self.scale > 1

    def acts_at(self, timestep: float) -> bool:
        """Whether it acts at a time of 0..1000."""
        return self.wanted and self.start <= timestep / TRAINING_LEVELS <= self.end


def guided_velocity(conditional: VelocityFn, both: VelocityFn, guidance: Guidance) -> VelocityFn:
    """A velocity function that moves away from the negative prompt.

    `conditional` evaluates the prompts alone; `both` evaluates twice the latents, first with the negative
    prompts, then with the prompts, in one batch.
    """

    def velocity(latents: Tensor, timestep: float) -> Tensor:
        if not guidance.acts_at(timestep):
            return conditional(latents, timestep)
        negative, positive = both(torch.cat([latents, latents]), timestep).float().chunk(2)
        return combine(negative, positive, guidance.scale)

    return velocity


def combine(
    negative: Float[Tensor, "*shape"], positive: Float[Tensor, "*shape"], scale: float
) -> Float[Tensor, "*shape"]:
    """Extrapolates from the negative through the positive prediction."""
    return torch.lerp(negative, positive, scale)
