"""RMS norm and rotary position of queries and keys, in place where a joint product has left them.

For every head x of a row:  y = x / sqrt(mean(x²) + eps) · weight;  then each pair of neighbours (a, b) is
turned by the angle of its place: (a cos - b sin, a sin + b cos). Values lie behind the keys and stay.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def norm_and_rotate(
    joint: Float[Tensor, "rows wide"],
    query_weight: Float[Tensor, " head_dim"],
    key_weight: Float[Tensor, " head_dim"],
    cos: Float[Tensor, "rows half"],
    sin: Float[Tensor, "rows half"],
    heads: int,
    eps: float = 1e-6,
) -> None:
    """Changes the first 2 · heads · head_dim columns of `joint`, queries, then keys; in fp32, rounded once.

    `joint` may be a slice of rows or columns of a larger tensor. Raises `ValueError` for shapes that do not
    belong together.
    """
    dim, half = query_weight.shape[0], cos.shape[1]
    if dim % 2 or dim != 2 * half or joint.shape[1] < 2 * heads * dim:
        raise ValueError(
            f"{joint.shape[1]} columns do not hold queries and keys of {heads} heads of {dim}, an even width "
            f"for which angles come in halves ({half} given)"
        )
    torch.ops.fewer.norm_and_rotate(joint, query_weight, key_weight, cos, sin, heads, eps)


def reference_norm_and_rotate(
    joint: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
) -> None:
    """Plain torch: the oracle."""
    wide = torch.promote_types(joint.dtype, torch.float32)
    inner = heads * query_weight.shape[0]
    cos, sin = cos.to(wide)[:, None], sin.to(wide)[:, None]
    for part, weight in zip(
        joint[:, : 2 * inner].split(inner, dim=1), (query_weight, key_weight), strict=True
    ):
        x = part.to(wide).unflatten(1, (heads, -1))
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(wide)
        even, odd = x.unflatten(2, (-1, 2)).unbind(3)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=3)
        part.copy_(turned.flatten(1))


_operator = torch.library.custom_op(
    "fewer::norm_and_rotate", reference_norm_and_rotate, mutates_args=("joint",), device_types="cpu"
)


@_operator.register_fake
def _(joint: Tensor, *others: object) -> None:
    return None


@_operator.register_kernel("cuda")
def on_gpu(
    joint: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
) -> None:
    """In place, by the kernel; float64, which it would compute in fp32, by the reference."""
    if joint.dtype == torch.float64:
        reference_norm_and_rotate(joint, query_weight, key_weight, cos, sin, heads, eps)
        return
    from fewer.kernels.triton.rotary import launch_norm_and_rotate

    launch_norm_and_rotate(joint, query_weight, key_weight, cos, sin, heads, eps)
