"""Softmax attention of image tokens to the few tokens of a text, heads side by side in memory as products
leave them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def cross_attention(
    query: Float[Tensor, "batch tokens heads head_dim"],
    keys: Float[Tensor, "batch heads length head_dim"],
    values: Float[Tensor, "batch heads length head_dim"],
    visible: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """softmax(q kᵀ / √head_dim) v. `visible` is true where a key counts; every row needs one that does."""
    return torch.ops.fewer.cross_attention(query, keys, values, visible)


def reference_cross_attention(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Plain torch: the oracle."""
    mask = None if visible is None else visible[:, None, None, :]
    read = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, attn_mask=mask
    )
    return read.transpose(1, 2).contiguous()


_operator = torch.library.custom_op(
    "fewer::cross_attention", reference_cross_attention, mutates_args=(), device_types="cpu"
)


@_operator.register_fake
def _(query: Tensor, *others: Tensor | None) -> Tensor:
    return query.new_empty(query.shape)


@_operator.register_kernel("cuda")
def _(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    if query.dtype not in (torch.bfloat16, torch.float16) or query.shape[3] > 128:
        return reference_cross_attention(query, keys, values, visible)
    from fewer.kernels.triton.hopper import has_hopper

    if has_hopper(query.device):
        from fewer.kernels.triton.hopper_attention import fits_attention, launch_attention

        if fits_attention(query, keys, values):
            return launch_attention(query, keys, values, visible)
    # Without a mask torch's own kernels are as fast on one H100; with one they are a quarter slower.
    if visible is None:
        return reference_cross_attention(query, keys, values, visible)
    from fewer.kernels.triton.cross_attention import launch_cross_attention

    return launch_cross_attention(query, keys, values, visible)
