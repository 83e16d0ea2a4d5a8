"""Softmax attention from image tokens to a short text, with its gradients, one pass each: for training.

The same result as torch's attention; here a program owns one head of one sample. Its keys and values stay on
the chip, its queries pass by once in each direction, and nothing is transposed beforehand.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.core.errors import ConfigError
from fewer.kernels.cross_attention import reference_cross_attention

LONGEST_TEXT = 64


def text_attention(
    query: Float[Tensor, "batch tokens heads head_dim"],
    keys: Float[Tensor, "batch length heads head_dim"],
    values: Float[Tensor, "batch length heads head_dim"],
    visible: Bool[Tensor, "batch length"],
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """softmax(q kᵀ / √head_dim) v over the keys that `visible` says count; every row needs one that does.

    Raises `ConfigError` above 64 keys.
    """
    if keys.shape[1] > LONGEST_TEXT:
        raise ConfigError(f"{keys.shape[1]} keys; at most {LONGEST_TEXT}, cross_attention takes any number")
    return torch.ops.fewer.text_attention(query, keys, values, visible)


@torch.library.custom_op("fewer::text_attention", mutates_args=(), device_types="cpu")
def _text_attention(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    return reference_cross_attention(query, keys.transpose(1, 2), values.transpose(1, 2), visible)


@torch.library.custom_op("fewer::text_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return reference_text_attention_backward(grad, query, keys, values, visible)


def reference_text_attention_backward(
    grad: Tensor, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, keys and values in plain torch: the oracle."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v, g = (tensor.to(wide).transpose(1, 2) for tensor in (query, keys, values, grad))
    scale = query.shape[3] ** -0.5
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~visible[:, None, None], -torch.inf)
    weights = scores.softmax(dim=3)
    g_weights = g @ v.transpose(2, 3)
    g_scores = weights * (g_weights - (g_weights * weights).sum(dim=3, keepdim=True)) * scale
    found = (g_scores @ k, g_scores.transpose(2, 3) @ q, weights.transpose(2, 3) @ g)
    return tuple(part.transpose(1, 2).to(query.dtype).contiguous() for part in found)  # type: ignore[return-value]


@_text_attention.register_fake
def _(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    return query.new_empty(query.shape)


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(keys.shape), query.new_empty(values.shape)


@_text_attention.register_kernel("cuda")
def _(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    if query.dtype == torch.float64:  # the kernels sum in fp32
        return reference_cross_attention(query, keys.transpose(1, 2), values.transpose(1, 2), visible)
    from fewer.kernels.triton.text_attention import launch_text_attention

    return launch_text_attention(query, keys, values, visible)


@_backward.register_kernel("cuda")
def _(
    grad: Tensor, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if query.dtype == torch.float64:
        return reference_text_attention_backward(grad, query, keys, values, visible)
    from fewer.kernels.triton.text_attention import launch_text_attention_backward

    return launch_text_attention_backward(grad, query, keys, values, visible)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    kept = ctx.saved_tensors  # type: ignore[attr-defined]
    return *torch.ops.fewer.text_attention_backward(grad, *kept), None


_text_attention.register_autograd(_gradients, setup_context=_keep)
