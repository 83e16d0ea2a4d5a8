"""An optimizer for networks that are mostly matrices (Muon: Jordan et al. 2024): the momentum of a matrix is
made orthogonal before it is taken as a step, so that directions of small gradient are learned as soon as
those of large ones. Steps are as long as AdamW's would be (Liu et al. 2025, arXiv 2502.16982, eq. 4), so its
learning rates and weight decay hold. What is no matrix (biases, norms, depthwise kernels) takes AdamW's step.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that drives singular values towards 1 in five rounds (Jordan et al.)."""
EPSILON = 1e-8


class Muon(torch.optim.Optimizer):
    """Orthogonal steps for matrices, AdamW's for the rest. A convolution is a matrix: outputs x the rest."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parameters without a gradient stay as they are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if is_matrix(parameter):
                    self._orthogonal_step(parameter, group["lr"])
                else:
                    first, second = group["betas"]
                    self._adam_step(parameter, group["lr"], first, second)

    def _orthogonal_step(self, parameter: Tensor, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, gradient = state["momentum"], parameter.grad
        momentum.lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
        length = 0.2 * math.sqrt(max(ahead.shape))
        parameter.add_(orthogonal(ahead[None])[0].view_as(parameter), alpha=-rate * length)

    def _adam_step(self, parameter: Tensor, rate: float, first: float, second: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        gradient = parameter.grad
        state["step"] += 1
        count = float(state["step"])
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        spread = (state["square"] / (1 - second**count)).sqrt_().add_(EPSILON)
        parameter.addcdiv_(state["mean"], spread, value=-rate / (1 - first**count))


def is_matrix(parameter: Tensor) -> bool:
    """Weights that mix channels: at least 4 outputs of more than 9 numbers each."""
    return parameter.ndim >= 2 and len(parameter) > 3 and parameter[0].numel() > 9


def orthogonal(matrices: Float[Tensor, "count rows columns"], rounds: int = 5) -> Tensor:
    """The same shape, singular values brought near 1, singular vectors kept; zero stays zero."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)
