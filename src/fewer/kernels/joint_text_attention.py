"""Attention from image tokens to a short text, with the queries' RMS norm, on rows as products leave them.

As `text_attention`; keys and values may be those of all blocks side by side, and normalised queries are never
written. Nothing here is recorded by autograd. On a GPU through kernels, elsewhere and in fp64 through the
plain formulas.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.kernels.cross_attention import reference_cross_attention
from fewer.kernels.text_attention import reference_text_attention_backward


def joint_text_attention(
    query: Float[Tensor, "batch tokens inner"],
    inverse: Float[Tensor, " rows"] | None,
    weight: Float[Tensor, " inner"] | None,
    keys: Float[Tensor, "batch length inner"],
    values: Float[Tensor, "batch length inner"],
    visible: Bool[Tensor, "batch length"],
    heads: int,
) -> Float[Tensor, "batch tokens inner"]:
    """softmax(q kᵀ / √head_dim) v, where q is the query times `inverse` of its row times `weight`.

    At most 64 words on a GPU; every text needs one that is visible.
    """
    if query.is_cuda and query.dtype != torch.float64:
        from fewer.kernels.triton.joint_text_attention import launch_joint_text_attention

        return launch_joint_text_attention(query, inverse, weight, keys, values, visible, heads)
    return reference_joint_text_attention(query, inverse, weight, keys, values, visible, heads)


def joint_text_attention_backward(
    grad: Float[Tensor, "batch tokens inner"],
    query: Float[Tensor, "batch tokens inner"],
    inverse: Float[Tensor, " rows"] | None,
    weight: Float[Tensor, " inner"] | None,
    keys: Float[Tensor, "batch length inner"],
    values: Float[Tensor, "batch length inner"],
    visible: Bool[Tensor, "batch length"],
    heads: int,
    found: tuple[Float[Tensor, "batch length inner"], Float[Tensor, "batch length inner"]],
) -> Float[Tensor, "batch tokens inner"]:
    """The gradient of the queries after their norm; those of keys and values are written into `found`."""
    arguments = (grad, query, inverse, weight, keys, values, visible, heads)
    if query.is_cuda and query.dtype != torch.float64:
        from fewer.kernels.triton.joint_text_attention import launch_joint_text_attention_backward

        return launch_joint_text_attention_backward(*arguments, found)
    g_query, *others = reference_joint_text_attention_backward(*arguments)
    for place, value in zip(found, others, strict=True):
        place.copy_(value)
    return g_query


def _apart(
    query: Tensor, inverse: Tensor | None, weight: Tensor | None, keys: Tensor, values: Tensor, heads: int
) -> list[Tensor]:
    if inverse is not None and weight is not None:
        factor = inverse.view(*query.shape[:2], 1)
        query = (query.to(factor.dtype) * factor * weight.to(factor.dtype)).to(query.dtype)
    return [part.unflatten(2, (heads, -1)) for part in (query, keys, values)]


def reference_joint_text_attention(
    query: Tensor, inverse: Tensor | None, weight: Tensor | None, keys: Tensor, values: Tensor,
    visible: Tensor, heads: int,
) -> Tensor:  # fmt: skip
    """Plain torch: the oracle."""
    q, k, v = _apart(query, inverse, weight, keys, values, heads)
    return reference_cross_attention(q, k.transpose(1, 2), v.transpose(1, 2), visible).flatten(2)


def reference_joint_text_attention_backward(
    grad: Tensor, query: Tensor, inverse: Tensor | None, weight: Tensor | None, keys: Tensor, values: Tensor,
    visible: Tensor, heads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Plain torch: the oracle."""
    parts = _apart(query, inverse, weight, keys, values, heads)
    found = reference_text_attention_backward(grad.unflatten(2, (heads, -1)), *parts, visible)
    return tuple(part.flatten(2) for part in found)  # type: ignore[return-value]
