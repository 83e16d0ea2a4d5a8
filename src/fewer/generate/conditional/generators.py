"""From a condition to weights: direct generation (CAN), and a mixture of kernels (AKS) to compare with."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from fewer.core.errors import ConfigError


class WeightGenerator(nn.Module):
    """G(c) = B SiLU(A c + a) + b, reshaped to the layer's weight; `rank=None`: one layer B SiLU(c) + b.

    Zero B and b make the network start as its static twin. The bottleneck is our choice: the paper only
    says that a module produces the weight.
    """

    def __init__(
        self, condition_dim: int, shape: tuple[int, ...], rank: int | None, zero_init: bool = True
    ) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise ConfigError(f"rank was {rank}; it must be 1 or more (64 is usual), or none")
        self.shape = shape
        self.a = None if rank is None else nn.Linear(condition_dim, rank)
        self.b = nn.Linear(condition_dim if rank is None else rank, prod(shape))
        if zero_init:
            nn.init.zeros_(self.b.weight)
            nn.init.zeros_(self.b.bias)
        else:
            nn.init.normal_(self.b.weight, std=1e-3)

    def forward(self, condition: Float[Tensor, "batch condition_dim"]) -> Float[Tensor, "batch *weight"]:
        inner = condition if self.a is None else self.a(condition)
        return self.b(silu(inner)).unflatten(1, self.shape)

    def macs(self) -> int:
        """Multiply-adds for one condition."""
        return sum(layer.in_features * layer.out_features for layer in (self.a, self.b) if layer is not None)


class KernelBank(nn.Module):
    """Adaptive kernel selection (CondConv, Dynamic Convolution): sum over k of softmax(S c)_k (W + V_k).

    The layer keeps W, so this gives sum softmax(S c)_k V_k. Zero V start as the static twin.
    """

    def __init__(
        self, condition_dim: int, shape: tuple[int, ...], kernels: int = 4, zero_init: bool = True
    ) -> None:
        super().__init__()
        if kernels < 2:
            raise ConfigError(f"kernels was {kernels}; a selection needs 2 or more (4 is usual)")
        self.shape = shape
        self.select = nn.Linear(condition_dim, kernels)
        self.kernels = nn.Parameter(torch.zeros(kernels, prod(shape)))
        if not zero_init:  # like W itself, so that the base kernels really differ
            nn.init.normal_(self.kernels, std=prod(shape[1:]) ** -0.5)

    def forward(self, condition: Float[Tensor, "batch condition_dim"]) -> Float[Tensor, "batch *weight"]:
        return (self.select(silu(condition)).softmax(1) @ self.kernels).unflatten(1, self.shape)

    def macs(self) -> int:
        """Multiply-adds for one condition."""
        return self.select.in_features * self.select.out_features + self.kernels.numel()
