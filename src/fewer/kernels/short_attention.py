"""ReLU linear attention of few tokens with its gradients, one pass each: what training spends its time on.

The same result as `linear_attention`; here a program owns one head of one sample and keeps all of its tokens
on the chip, so queries, keys and values are read once.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.errors import ConfigError
from fewer.kernels.linear_attention import reference_apply, reference_state

MOST_TOKENS = 256


def short_attention(
    query: Float[Tensor, "batch tokens heads head_dim"],
    key: Float[Tensor, "batch tokens heads head_dim"],
    value: Float[Tensor, "batch tokens heads head_dim"],
    eps: float = 1e-15,
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Attention output in the query's dtype; ReLU is applied here. Raises `ConfigError` above 256 tokens."""
    if query.shape[1] > MOST_TOKENS:
        raise ConfigError(
            f"{query.shape[1]} tokens; at most {MOST_TOKENS}, linear_attention takes any number"
        )
    return torch.ops.fewer.short_attention(query, key, value, eps)


def reference_short_attention(query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    """Plain torch: the oracle."""
    return reference_apply(query, reference_state(key, value), eps)


@torch.library.custom_op("fewer::short_attention", mutates_args=(), device_types="cpu")
def _short_attention(query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    return reference_short_attention(query, key, value, eps)


@torch.library.custom_op("fewer::short_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return reference_short_attention_backward(grad, query, key, value, eps)


def reference_short_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value in plain torch: the oracle."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v, g = (tensor.to(wide).transpose(1, 2) for tensor in (query, key, value, grad))
    positive_q, positive_k = q.relu(), k.relu()
    state, ones = positive_k.transpose(2, 3) @ v, positive_k.sum(dim=2, keepdim=True)
    below = (positive_q * ones).sum(dim=3, keepdim=True) + eps
    g = g / below
    g_below = -(g * (positive_q @ state)).sum(dim=3, keepdim=True) / below
    g_state, g_ones = positive_q.transpose(2, 3) @ g, (positive_q * g_below).sum(dim=2, keepdim=True)
    g_q = (g @ state.transpose(2, 3) + g_below * ones) * (q > 0)
    g_k = (v @ g_state.transpose(2, 3) + g_ones) * (k > 0)
    found = (g_q, g_k, positive_k @ g_state)
    return tuple(part.transpose(1, 2).to(query.dtype).contiguous() for part in found)  # type: ignore[return-value]


@_short_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    return query.new_empty(query.shape)


@_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape)


@_short_attention.register_kernel("cuda")
def _(query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    if query.dtype == torch.float64:  # the kernels sum in fp32
        return reference_short_attention(query, key, value, eps)
    from fewer.kernels.triton.short_attention import launch_short_attention

    return launch_short_attention(query, key, value, eps)


@_backward.register_kernel("cuda")
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if query.dtype == torch.float64:
        return reference_short_attention_backward(grad, query, key, value, eps)
    from fewer.kernels.triton.short_attention import launch_short_attention_backward

    return launch_short_attention_backward(grad, query, key, value, eps)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    query, key, value, eps = inputs
    ctx.save_for_backward(query, key, value)
    ctx.eps = eps  # type: ignore[attr-defined]


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    kept = ctx.saved_tensors  # type: ignore[attr-defined]
    found = torch.ops.fewer.short_attention_backward(grad, *kept, ctx.eps)  # type: ignore[attr-defined]
    return *found, None


_short_attention.register_autograd(_gradients, setup_context=_keep)
