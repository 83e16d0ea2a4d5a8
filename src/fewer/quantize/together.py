"""The branches of all smoothing candidates of a part in one go: what a GPU's search is made of.

One at a time, 39 candidates are thousands of small operations that a GPU waits for. But a randomised SVD
multiplies W-hat = W diag(lambda) by thin matrices only, so those of all candidates stand side by side and W
is multiplied once; no W-hat is made.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.quantize.lowrank import OVERSAMPLING, Branch, cholesky_basis, leading_directions

ITERATIONS = 4  # power iterations; every candidate starts from random directions


def branches_together(
    weight: Float[Tensor, "out dim"],
    scales: Float[Tensor, "candidates dim"],
    rank: int,
    generator: torch.Generator,
) -> list[Branch]:
    """The best branch of `weight * scales[c]` for each candidate c, by randomised SVD in fp32."""
    count, dim = scales.shape
    if rank == 0:
        empty = Branch(weight.new_zeros(len(weight), 0).float(), weight.new_zeros(0, dim).float())
        return [empty] * count
    weight, scales = weight.float(), scales.float()
    sketch = min(rank + OVERSAMPLING, *weight.shape)
    start = torch.randn(dim, sketch, generator=generator).to(weight.device)
    basis = cholesky_basis(_forth(weight, scales, start.expand(count, dim, sketch)))
    for _ in range(ITERATIONS):
        basis = cholesky_basis(_forth(weight, scales, cholesky_basis(_back(weight, scales, basis))))
    small = _back(weight, scales, basis).mT
    left, values = leading_directions(small, rank)
    right = (left.mT @ small) / torch.where(values > 0, values, torch.ones_like(values))[:, :, None]
    up = (basis @ left) * values[:, None, :]
    return [Branch(*pair) for pair in zip(up.unbind(), right.unbind(), strict=True)]


def _forth(weight: Tensor, scales: Tensor, thin: Float[Tensor, "candidates dim few"]) -> Tensor:
    """W-hat thin of every candidate: [candidates, out, few]."""
    side_by_side = (scales[:, :, None] * thin).movedim(0, 1).flatten(1)
    return (weight @ side_by_side).unflatten(1, (len(scales), -1)).movedim(1, 0)


def _back(weight: Tensor, scales: Tensor, thin: Float[Tensor, "candidates out few"]) -> Tensor:
    """W-hat^T thin of every candidate: [candidates, dim, few]."""
    product = (weight.mT @ thin.movedim(0, 1).flatten(1)).unflatten(1, (len(scales), -1))
    return scales[:, :, None] * product.movedim(1, 0)
