"""Distribution alignment: the classifier's mean answer is moved towards the labels' mean (ReMixMatch)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DistributionAlignment(nn.Module):
    """Running means of the answers, in buffers, so that a checkpoint carries them.

    `target="labelled"` follows the softmax of the labelled batch (InstanT, AdaMatch);
    `target="uniform"` stays at 1/K (SoftMatch).
    """

    p_model: Tensor
    p_target: Tensor
    started: Tensor

    def __init__(self, classes: int, momentum: float = 0.999, *, uniform: bool = False) -> None:
        super().__init__()
        self.momentum, self.uniform = momentum, uniform
        self.register_buffer("p_model", torch.full((classes,), 1.0 / classes))
        self.register_buffer("p_target", torch.full((classes,), 1.0 / classes))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def update(
        self, unlabelled: Float[Tensor, "batch classes"], labelled: Float[Tensor, "other classes"]
    ) -> None:
        """Follows one batch; the first one sets p_model."""
        mean = unlabelled.mean(0)
        # The first batch sets the mean; `where` instead of `if` keeps a GPU from waiting.
        start = torch.where(self.started, self.p_model, mean)
        self.p_model.copy_(torch.where(self.started, start.lerp(mean, 1 - self.momentum), mean))
        self.started.fill_(True)
        if not self.uniform:
            self.p_target.lerp_(labelled.mean(0), 1 - self.momentum)

    def forward(self, probabilities: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """p * (p_target + 1e-6) / (p_model + 1e-6), renormalised."""
        moved = probabilities * (self.p_target + 1e-6) / (self.p_model + 1e-6)
        return moved / moved.sum(1, keepdim=True)
