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

OVERSAMPLING = 10  # directions beyond the rank that a randomised SVD carries along


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
    sketch = min(rank + OVERSAMPLING, *matrix.shape)
    if start is None:
        start = torch.randn(matrix.shape[1], sketch, generator=generator).to(matrix.device)
    basis = _orthonormal(matrix @ start)
    for _ in range(iterations):
        basis = _orthonormal(matrix @ _orthonormal(matrix.mT @ basis))
    small = basis.mT @ matrix
    left, values = leading_directions(small, rank)
    right = (left.mT @ small) / torch.where(values > 0, values, torch.ones_like(values))[:, None]
    return Branch((basis @ left) * values, right)


def leading_directions(
    small: Float[Tensor, "*batch few dim"], rank: int
) -> tuple[Float[Tensor, "*batch few rank"], Float[Tensor, "*batch rank"]]:
    """The `rank` leading left singular vectors and values of a flat matrix (or of each of a batch).

    basis^T W has the singular values of W; its left vectors come from a few-by-few eigenproblem, which a CPU
    solves before a GPU has begun, so nothing as wide as W is decomposed.
    """
    squares, left = torch.linalg.eigh((small.double() @ small.mT.double()).cpu())
    left = left.flip(-1)[..., :rank].float().to(small.device)
    return left, squares.flip(-1)[..., :rank].clamp_min(0).sqrt().float().to(small.device)


class WarmSvd:
    """Randomised SVDs of a row of similar matrices, each started from the directions of the one before."""

    def __init__(self, rank: int, generator: torch.Generator, *, first: int, later: int) -> None:
        self.rank, self.generator, self.first, self.later = rank, generator, first, later
        self.start: Tensor | None = None

    def __call__(self, matrix: Float[Tensor, "out dim"]) -> Branch:
        """The next matrix's branch."""
        branch = randomized_svd(
            matrix,
            self.rank,
            iterations=self.first if self.start is None else self.later,
            generator=self.generator,
            start=self.start,
        )
        if self.rank:
            dim = matrix.shape[1]
            extra = min(OVERSAMPLING, min(matrix.shape) - self.rank)
            noise = torch.randn(dim, extra, generator=self.generator).to(matrix.device) / dim**0.5
            self.start = torch.cat([branch.down.mT, noise], dim=1)
        return branch


def refine(
    target: Float[Tensor, "out dim"],
    decompose: Callable[[Tensor], Branch],
    settle: Callable[[Branch, Tensor], float],
    rounds: int,
) -> Branch:
    """The branch with the least loss over up to `rounds` rounds, stopping at the first that is worse.

    `target` is the smoothed weight W-hat and is overwritten: `settle(branch, target)` leaves
    W-hat - Q(W-hat - L) there and returns the loss. The residual is always taken from W-hat itself, so errors
    never pile up.
    """
    best: Branch | None = None
    losses: list[float] = []
    for _ in range(rounds):
        branch = decompose(target)
        error = settle(branch, target)
        if best is not None and error > losses[-1]:
            break
        best, losses = branch, [*losses, error]
        if not branch.up.shape[1]:
            break  # nothing to refine without a branch
    assert best is not None
    best.losses = losses
    return best


def in_range(
    down: Float[Tensor, "rank dim"], up: Float[Tensor, "out rank"], dtype: torch.dtype
) -> tuple[Float[Tensor, "rank dim"], Float[Tensor, "out rank"]]:
    """The factors in `dtype`: where one of a pair is beyond its range, powers of two move to the other."""
    most = torch.finfo(dtype).max

    def excess(peak: Tensor) -> Tensor:
        return torch.exp2(torch.ceil(torch.log2(peak / most)).clamp_min(0))

    if up.shape[1]:
        moved = excess(up.abs().amax(dim=0)) / excess(down.abs().amax(dim=1))
        down, up = down * moved[:, None], up / moved
    return down.clamp(-most, most).to(dtype), up.clamp(-most, most).to(dtype)


def _orthonormal(matrix: Float[Tensor, "tall narrow"]) -> Float[Tensor, "tall narrow"]:
    """An orthonormal basis of the columns, by the method that suits the device."""
    return torch.linalg.qr(matrix).Q if matrix.device.type == "cpu" else cholesky_basis(matrix)


def cholesky_basis(matrix: Float[Tensor, "*batch tall narrow"]) -> Float[Tensor, "*batch tall narrow"]:
    """The same by two rounds of Cholesky QR in float64, also of a batch of matrices.

    A GPU's Householder QR of a tall matrix takes milliseconds; Gram matrix, factor and the factor's inverse
    are small operations that nobody waits for. Columns beyond the matrix's rank come out near zero.
    """
    basis = matrix.double()
    identity = torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
    for _ in range(2):
        gram = basis.mT @ basis
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        diagonal += 1e-13 * diagonal.sum(-1, keepdim=True) + torch.finfo(torch.float64).tiny
        factor = torch.linalg.cholesky_ex(gram).L
        # the inverse of the small factor and a product: a triangular solve against a tall matrix is slow
        basis = basis @ torch.linalg.solve_triangular(factor.mT, identity, upper=True)
    return basis.float()


def _empty(matrix: Tensor) -> Branch:
    return Branch(matrix.new_zeros(matrix.shape[0], 0).float(), matrix.new_zeros(0, matrix.shape[1]).float())
