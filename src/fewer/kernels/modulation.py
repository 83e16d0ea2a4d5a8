"""Gated sum, LayerNorm and modulation of a transformer's block, and all their gradients: one pass each way.

For training by hand-written backward passes; nothing here is recorded by autograd. On a GPU through kernels,
elsewhere and in fp64 through the plain formulas.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm


def gated_norm(
    x: Float[Tensor, "batch tokens dim"],
    update: Float[Tensor, "batch tokens dim"] | None,
    gate: Float[Tensor, "batch dim"] | None,
    shift: Float[Tensor, "batch dim"] | None,
    scale: Float[Tensor, "batch dim"] | None,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
    """(total, read): x + gate · update where there is an update; LayerNorm(total) · (1 + scale) + shift."""
    if _has_kernel(x):
        from fewer.kernels.triton.modulation import launch_gated_norm

        return launch_gated_norm(x, update, gate, shift, scale, eps)
    return reference_gated_norm(x, update, gate, shift, scale, eps)


def gated_norm_backward(
    g_total: Float[Tensor, "batch tokens dim"],
    g_read: Float[Tensor, "batch tokens dim"] | None,
    total: Float[Tensor, "batch tokens dim"],
    update: Float[Tensor, "batch tokens dim"] | None,
    gate: Float[Tensor, "batch dim"] | None,
    scale: Float[Tensor, "batch dim"] | None,
    eps: float = 1e-6,
) -> tuple[
    Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"], Float[Tensor, "4 batch dim"]
]:
    """Gradients of x and of the update (the same without a gate), and four sums over the tokens.

    The sums are the gradients of shift, scale and gate, and the update's gradient summed: what a bias behind
    it needs. Those of what is absent are undefined.
    """
    if _has_kernel(g_total):
        from fewer.kernels.triton.modulation import launch_gated_norm_backward

        return launch_gated_norm_backward(g_total, g_read, total, update, gate, scale, eps)
    return reference_gated_norm_backward(g_total, g_read, total, update, gate, scale, eps)


def _has_kernel(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float64


def reference_gated_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Plain torch: the oracle. The norm reads the rounded sum."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x
    if update is not None:
        share = 1 if gate is None else gate.to(wide)[:, None]
        total = (x.to(wide) + share * update.to(wide)).to(x.dtype)
    if shift is None or scale is None:
        return total, total
    normed = layer_norm(total.to(wide), total.shape[-1:], eps=eps)
    return total, (normed * (1 + scale.to(wide)[:, None]) + shift.to(wide)[:, None]).to(x.dtype)


def reference_gated_norm_backward(
    g_total: Tensor, g_read: Tensor | None, total: Tensor, update: Tensor | None, gate: Tensor | None,
    scale: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Plain torch: the oracle."""
    wide, kind = torch.promote_types(g_total.dtype, torch.float32), g_total.dtype
    g, nothing = g_total.to(wide), g_total.new_zeros(g_total.shape[0], g_total.shape[2], dtype=torch.float32)
    sums = [nothing.to(wide)] * 3
    if g_read is not None and scale is not None:
        v, above = total.to(wide), g_read.to(wide)
        v = v - v.mean(2, keepdim=True)
        inverse = torch.rsqrt(v.square().mean(2, keepdim=True) + eps)
        v = v * inverse
        sums[:2] = above.sum(1), (above * v).sum(1)
        above = above * (1 + scale.to(wide)[:, None])
        g = g + inverse * (above - above.mean(2, keepdim=True) - v * (above * v).mean(2, keepdim=True))
    g_update = g
    if gate is not None and update is not None:
        sums[2] = (g * update.to(wide)).sum(1)
        g_update = g * gate.to(wide)[:, None]
    return g.to(kind), g_update.to(kind), torch.stack([*sums, g_update.sum(1)])
