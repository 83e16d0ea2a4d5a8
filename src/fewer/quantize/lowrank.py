"""The 16-bit low-rank branch: SVD, randomised SVD, and refinement against the rounded residual.

SVDQuant section 4.2: the truncated SVD of the smoothed weight W-hat minimises the residual R that has to be
rounded. Refinement then repeats L = SVD_r(W-hat - Q(W-hat - L)) while the calibration loss falls.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.errors import ConfigError


@dataclass(slots=True)
class Branch:
    """up @ down is the part of the weight that stays in 16 bits."""

    up: Float[Tensor, "out rank"]
    """U S of the SVD."""
    down: Float[Tensor, "rank dim"]
    """V transposed, acting on smoothed inputs."""
    losses: list[float] = field(default_factory=list)
    """Calibration loss of each kept round, never increasing."""

    def product(self) -> Float[Tensor, "out dim"]:
        """The full matrix of the branch."""
        return self.up @ self.down


def check_rank(rank: int, shape: tuple[int, ...], name: str) -> None:
    """Raises `ConfigError` naming the layer if 0 <= rank <= min(shape) does not hold."""
    if not 0 <= rank <= min(shape):
        raise ConfigError(
            f"rank {rank} of layer {name!r} is outside 0 .. {min(shape)} "
            f"(its weight is {shape[0]} x {shape[1]}); "
            f"choose a smaller --rank"
        )


def truncated_svd(matrix: Float[Tensor, "out dim"], rank: int) -> Branch:
    """The best rank-`rank` approximation, computed in float64."""
    if rank == 0:
        return _empty(matrix)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return Branch((left[:, :rank] * values[:rank]).float(), right[:rank].float())


def randomized_svd(
    matrix: Float[Tensor, "out dim"],
    rank: int,
    *,
    iterations: int = 4,
    generator: torch.Generator | None = None,
    start: Float[Tensor, "dim sketch"] | None = None,
) -> Branch:
    """Halko's randomised SVD with `rank + 10` directions in fp32; `start` replaces the random directions.

    A start from a neighbouring matrix (the previous candidate or round) makes one iteration enough.
    """
    if rank == 0:
        return _empty(matrix)
    matrix = matrix.float()
    sketch = min(rank + 10, *matrix.shape)
    if start is None:
        start = torch.randn(matrix.shape[1], sketch, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(iterations):
        other = torch.linalg.qr(matrix.mT @ basis).Q
        basis = torch.linalg.qr(matrix @ other).Q
    # the small matrix basis^T W has the singular values of W
    left, values, right = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
    return Branch((basis @ left[:, :rank]) * values[:rank], right[:rank].contiguous())


def refine(
    weight: Float[Tensor, "out dim"],
    decompose: Callable[[Tensor], Branch],
    round_residual: Callable[[Tensor], Tensor],
    loss: Callable[[Branch, Tensor], float] | None,
    rounds: int,
) -> Branch:
    """Alternates the branch and the rounded residual; keeps the round with the least loss.

    `loss(branch, rounded)` is the squared output error on calibration rows; without it (`None`) the
    weight's own squared error stands in. The first round is the plain method. The residual is always
    taken from the original weight, so errors never pile up.
    """
    rounded = torch.zeros_like(weight)
    best: Branch | None = None
    losses: list[float] = []
    for _ in range(rounds):
        branch = decompose(weight - rounded)
        residual = torch.addmm(weight, branch.up, branch.down, alpha=-1)
        rounded = round_residual(residual)
        if loss is None:
            error = residual.sub_(rounded).square().sum().item()
        else:
            del residual
            error = loss(branch, rounded)
        if best is not None and error > losses[-1]:
            break
        best, losses = branch, [*losses, error]
        if not branch.up.shape[1]:
            break  # nothing to refine without a branch
    assert best is not None
    best.losses = losses
    return best


def _empty(matrix: Tensor) -> Branch:
    return Branch(matrix.new_zeros(matrix.shape[0], 0).float(), matrix.new_zeros(0, matrix.shape[1]).float())
