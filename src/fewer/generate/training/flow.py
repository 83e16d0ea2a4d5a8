"""Rectified flow: the loss that trains Sana (arXiv 2410.10629, section 3.2).

Noisy latents are (1 - s) data + s noise; the network learns their velocity, noise minus data. Levels s are
logit-normal, then shifted towards noise, more so for larger pictures (3 at 512 px, 4 at 1024, 6 at 4096).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.generate.sampling.schedule import TRAINING_LEVELS, logit_normal_levels

VelocityFn = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(latents, timestep in 0..1000, text, text mask) -> velocity."""


@dataclass(frozen=True, slots=True)
class FlowBatch:
    """What one step trains on. All randomness is in it, so that a rank can take its rows and no more."""

    latents: Float[Tensor, "batch channels lat_h lat_w"]
    text: Float[Tensor, "batch length text_dim"]
    text_mask: Float[Tensor, "batch length"]
    levels: Float[Tensor, " batch"]
    noise: Float[Tensor, "batch channels lat_h lat_w"]
    weight: float = 1.0
    """Factor on the loss of these rows: batch of this rank times ranks over the whole batch."""

    def share(self, rank: int, ranks: int) -> "FlowBatch":
        """The rows of one rank. The mean over ranks of the weighted losses is the loss of the whole batch."""
        total = self.latents.shape[0]
        rows = slice(rank, None, ranks)
        weight = len(range(rank, total, ranks)) * ranks / total
        if weight == 0.0:  # fewer rows than ranks: take one along, and count it as nothing
            rows = slice(0, 1)
        return FlowBatch(
            self.latents[rows],
            self.text[rows],
            self.text_mask[rows],
            self.levels[rows],
            self.noise[rows],
            weight,
        )

    def to(self, device: torch.device) -> "FlowBatch":
        """The same on a device."""
        tensors = (self.latents, self.text, self.text_mask, self.levels, self.noise)
        return FlowBatch(*(tensor.to(device, non_blocking=True) for tensor in tensors), self.weight)


def draw_flow(
    latents: Float[Tensor, "batch channels lat_h lat_w"],
    text: Float[Tensor, "batch length text_dim"],
    text_mask: Float[Tensor, "batch length"],
    shift: float,
    generator: torch.Generator,
) -> FlowBatch:
    """Adds random levels and noise, drawn on the CPU so that a seed means the same on every device."""
    levels = logit_normal_levels(latents.shape[0], shift, generator)
    noise = torch.randn(latents.shape, generator=generator)
    return FlowBatch(latents, text, text_mask, levels, noise)


def flow_loss(velocity_fn: VelocityFn, batch: FlowBatch) -> Float[Tensor, ""]:
    """Mean squared error of the velocity, in fp32, times the batch's weight.

    The network reads the level times 1000, cut to a whole number as in the published recipe.
    """
    level = batch.levels[:, None, None, None]
    noisy = (1 - level) * batch.latents + level * batch.noise
    timestep = torch.floor(batch.levels * TRAINING_LEVELS)
    velocity = velocity_fn(noisy, timestep, batch.text, batch.text_mask)
    return batch.weight * (velocity.float() - (batch.noise - batch.latents)).square().mean()
