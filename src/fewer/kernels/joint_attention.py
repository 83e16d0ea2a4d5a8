"""ReLU linear attention on the rows of one product, with the RMS norms of queries and keys: for training.

As `short_attention`, but queries, keys and values lie side by side as one product leaves them, normalised
ones are never written, and the gradient comes back in the same form, ready for one product. Nothing here is
recorded by autograd. On a GPU through kernels, elsewhere and in fp64 through the plain formulas.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels.short_attention import reference_short_attention, reference_short_attention_backward

Weights = tuple[Float[Tensor, " inner"], ...]


def inverse_roots(
    rows: Float[Tensor, "rows parts_and_more"], dim: int, parts: int, eps: float = 1e-5
) -> Float[Tensor, "rows {parts}"]:
    """1 / √(mean square + eps) of the first `parts` pieces of `dim` numbers: what an RMS norm divides by."""
    if _has_kernel(rows):
        from fewer.kernels.triton.joint_attention import launch_inverse

        return launch_inverse(rows, dim, parts, eps)
    wide = torch.promote_types(rows.dtype, torch.float32)
    pieces = rows[:, : parts * dim].to(wide).unflatten(1, (parts, dim))
    return torch.rsqrt(pieces.square().mean(2) + eps)


def norms_backward_(
    grad: Float[Tensor, "rows columns"],
    rows: Float[Tensor, "rows columns"],
    inverse: Float[Tensor, "rows parts"],
    weights: Weights,
) -> tuple[Float[Tensor, "parts inner"], Float[Tensor, "parts inner"]]:
    """Turns gradients behind the RMS norms of the first pieces into those before them, in place.

    Returns the gradients of the norms' weights, and the sums over the rows of what is in place now.
    """
    if _has_kernel(grad):
        from fewer.kernels.triton.joint_attention import launch_norm_backward_

        return launch_norm_backward_(grad, rows, inverse, weights)
    return reference_norms_backward_(grad, rows, inverse, weights)


def joint_attention(
    joint: Float[Tensor, "batch tokens three_inner"],
    inverse: Float[Tensor, "rows 2"] | None,
    weights: Weights,
    heads: int,
    eps: float = 1e-15,
) -> tuple[Float[Tensor, "batch tokens inner"], Float[Tensor, "..."]]:
    """The output, and what `joint_attention_backward` needs besides. Without `inverse` nothing is normed."""
    if _has_kernel(joint):
        from fewer.kernels.triton.joint_attention import launch_joint_attention

        return launch_joint_attention(joint, inverse, weights or None, heads, eps)
    return reference_joint_attention(joint, inverse, weights, heads, eps), joint.new_empty(heads, 0)


def joint_attention_backward(
    grad: Float[Tensor, "batch tokens inner"],
    joint: Float[Tensor, "batch tokens three_inner"],
    inverse: Float[Tensor, "rows 2"] | None,
    weights: Weights,
    states: Float[Tensor, "..."],
    eps: float = 1e-15,
) -> Float[Tensor, "batch tokens three_inner"]:
    """The gradient of `joint`, that of queries and keys as they are after their norms."""
    if _has_kernel(joint):
        from fewer.kernels.triton.joint_attention import launch_joint_attention_backward

        return launch_joint_attention_backward(grad, joint, inverse, weights or None, states, eps)
    return reference_joint_attention_backward(grad, joint, inverse, weights, len(states), eps)


def _has_kernel(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float64


def reference_norms_backward_(
    grad: Tensor, rows: Tensor, inverse: Tensor, weights: Weights
) -> tuple[Tensor, Tensor]:
    """Plain torch: the oracle."""
    parts, dim = inverse.shape[1], len(weights[0])
    wide = inverse.dtype
    here = grad[:, : parts * dim].unflatten(1, (parts, dim))
    v = rows[:, : parts * dim].to(wide).unflatten(1, (parts, dim)) * inverse[:, :, None]
    of_weights = (here.to(wide) * v).sum(0)
    g = here.to(wide) * torch.stack(weights).to(wide)
    g = (g - v * (g * v).mean(2, keepdim=True)) * inverse[:, :, None]
    here.copy_(g)
    return of_weights, g.sum(0)


def _apart(joint: Tensor, inverse: Tensor | None, weights: Weights, heads: int) -> list[Tensor]:
    """Queries and keys after their norms, and values, by heads."""
    parts = list(joint.chunk(3, dim=2))
    if inverse is not None:
        for part, weight in enumerate(weights):
            factor = inverse[:, part].view(*joint.shape[:2], 1)
            parts[part] = (parts[part].to(inverse.dtype) * factor * weight.to(inverse.dtype)).to(joint.dtype)
    return [part.unflatten(2, (heads, -1)) for part in parts]


def reference_joint_attention(
    joint: Tensor, inverse: Tensor | None, weights: Weights, heads: int, eps: float
) -> Tensor:
    """Plain torch: the oracle."""
    return reference_short_attention(*_apart(joint, inverse, weights, heads), eps).flatten(2)


def reference_joint_attention_backward(
    grad: Tensor, joint: Tensor, inverse: Tensor | None, weights: Weights, heads: int, eps: float
) -> Tensor:
    """Plain torch: the oracle."""
    above = grad.unflatten(2, (heads, -1))
    found = reference_short_attention_backward(above, *_apart(joint, inverse, weights, heads), eps)
    return torch.cat([part.flatten(2) for part in found], dim=2)
