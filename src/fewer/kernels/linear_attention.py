"""ReLU linear attention with a normaliser row, as in Sana and DC-AE.

Per head, with q and k after ReLU and d the head size:  S = Σ_j [v_j ; 1] k_jᵀ  (d+1 × d),
o_i = (S q_i)[:d] / ((S q_i)[d] + eps).  Cost is linear in the tokens; sums are in fp32 (Sana §3.2).
The state S is an operator of its own, because patch parallelism adds the states of all devices in between.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def linear_attention(
    query: Float[Tensor, "batch tokens heads head_dim"],
    key: Float[Tensor, "batch keys heads head_dim"],
    value: Float[Tensor, "batch keys heads head_dim"],
    eps: float = 1e-15,
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Attention output in the query's dtype; ReLU is applied here. A row of zero queries gives zeros.

    On a GPU in fp32, fp16 or bf16 through kernels; float64 always takes the plain formula.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        return linear_attention_apply(query, linear_attention_state(key, value), eps)
    return torch.ops.fewer.linear_attention(query, key, value, eps)


def linear_attention_state(
    key: Float[Tensor, "batch keys heads head_dim"], value: Float[Tensor, "batch keys heads head_dim"]
) -> Float[Tensor, "batch heads head_dim_and_one head_dim"]:
    """S in fp32. States of disjoint sets of tokens add up to the state of their union."""
    return torch.ops.fewer.linear_attention_state(key, value)


def linear_attention_apply(
    query: Float[Tensor, "batch tokens heads head_dim"],
    state: Float[Tensor, "batch heads head_dim_and_one head_dim"],
    eps: float = 1e-15,
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """The output for these queries, given the state of all keys and values."""
    return torch.ops.fewer.linear_attention_apply(query, state, eps)


@torch.library.custom_op("fewer::linear_attention_state", mutates_args=(), device_types="cpu")
def _state(key: Tensor, value: Tensor) -> Tensor:
    return reference_state(key, value)


@torch.library.custom_op("fewer::linear_attention_apply", mutates_args=(), device_types="cpu")
def _apply(query: Tensor, state: Tensor, eps: float) -> Tensor:
    return reference_apply(query, state, eps)


def reference_state(key: Tensor, value: Tensor) -> Tensor:
    """Plain torch, fp32 (float64 stays float64): the oracle of the Triton version."""
    wide = torch.promote_types(key.dtype, torch.float32)
    keys = key.to(wide).relu()
    values = torch.nn.functional.pad(value.to(wide), (0, 1), value=1.0)
    return torch.einsum("bnhd,bnhe->bhde", values, keys).contiguous()


def reference_apply(query: Tensor, state: Tensor, eps: float) -> Tensor:
    """Plain torch, in the state's precision, rounded once at the end."""
    summed = torch.einsum("bnhe,bhde->bnhd", query.to(state.dtype).relu(), state)
    result = summed[..., :-1] / (summed[..., -1:] + eps)
    if query.dtype == torch.float16:
        result = result.clamp(-65504, 65504)
    return result.to(query.dtype).contiguous()


def reference_linear_attention(query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    """Both passes in plain torch: the oracle."""
    return reference_apply(query, reference_state(key, value), eps)


_both = torch.library.custom_op(
    "fewer::linear_attention", reference_linear_attention, mutates_args=(), device_types="cpu"
)


@_both.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    return query.new_empty(query.shape)


@_both.register_kernel("cuda")
def _(query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    if query.dtype == torch.float64:
        return reference_linear_attention(query, key, value, eps)
    from fewer.kernels.triton.linear_attention import launch_linear_attention

    return launch_linear_attention(query, key, value, eps)


@_state.register_fake
def _(key: Tensor, value: Tensor) -> Tensor:
    batch, _, heads, dim = key.shape
    wide = torch.promote_types(key.dtype, torch.float32)
    return key.new_empty((batch, heads, dim + 1, dim), dtype=wide)


@_apply.register_fake
def _(query: Tensor, state: Tensor, eps: float) -> Tensor:
    return query.new_empty(query.shape)


@_state.register_kernel("cuda")
def _(key: Tensor, value: Tensor) -> Tensor:
    if key.dtype == torch.float64:
        return reference_state(key, value)
    from fewer.kernels.triton.linear_attention import launch_state

    return launch_state(key, value)


@_apply.register_kernel("cuda")
def _(query: Tensor, state: Tensor, eps: float) -> Tensor:
    if query.dtype == torch.float64:
        return reference_apply(query, state, eps)
    from fewer.kernels.triton.linear_attention import launch_apply

    return launch_apply(query, state, eps)


def _state_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
    key, value = ctx.saved_tensors  # type: ignore[attr-defined]
    keys = key.to(grad.dtype)
    values = torch.nn.functional.pad(value.to(grad.dtype), (0, 1), value=1.0)
    grad_key = torch.einsum("bhde,bnhd->bnhe", grad, values) * (keys > 0)
    grad_value = torch.einsum("bhde,bnhe->bnhd", grad[:, :, :-1], keys.relu())
    return grad_key.to(key.dtype), grad_value.to(value.dtype)


def _state_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _apply_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    query, state = ctx.saved_tensors  # type: ignore[attr-defined]
    queries = query.to(state.dtype)
    positive = queries.relu()
    summed = torch.einsum("bnhe,bhde->bnhd", positive, state)
    below = summed[..., -1:] + ctx.eps  # type: ignore[attr-defined]
    grad_top = grad.to(state.dtype) / below
    grad_below = -(grad_top * summed[..., :-1]).sum(-1, keepdim=True) / below
    grad_summed = torch.cat([grad_top, grad_below], dim=-1)
    grad_query = torch.einsum("bnhd,bhde->bnhe", grad_summed, state) * (queries > 0)
    grad_state = torch.einsum("bnhd,bnhe->bhde", grad_summed, positive)
    return grad_query.to(query.dtype), grad_state, None


def _apply_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    query, state, eps = inputs
    ctx.save_for_backward(query, state)
    ctx.eps = eps  # type: ignore[attr-defined]


_state.register_autograd(_state_backward, setup_context=_state_context)
_apply.register_autograd(_apply_backward, setup_context=_apply_context)
