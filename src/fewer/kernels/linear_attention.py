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
    exact: bool = False,
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Attention output in the query's dtype; ReLU is applied here. A row of zero queries gives zeros.

    On a GPU in fp32, fp16 or bf16 through kernels; float64 always takes the plain formula. With `exact` the
    state is summed in fp64 and rounded once, so that its bits don't depend on the order of the tokens' sums:
    what a model needs whose next layer rounds to few bits, to be the same on one device and on several.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        return linear_attention_apply(query, linear_attention_state(key, value, exact), eps)
    return torch.ops.fewer.linear_attention(query, key, value, eps, exact)


def linear_attention_state(
    key: Float[Tensor, "batch keys heads head_dim"],
    value: Float[Tensor, "batch keys heads head_dim"],
    exact: bool = False,
) -> Float[Tensor, "batch heads head_dim_and_one head_dim"]:
    """S in fp32, or in fp64 if `exact`. States of disjoint sets of tokens add up to that of their union."""
    return torch.ops.fewer.linear_attention_state(key, value, exact)


def linear_attention_apply(
    query: Float[Tensor, "batch tokens heads head_dim"],
    state: Float[Tensor, "batch heads head_dim_and_one head_dim"],
    eps: float = 1e-15,
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """The output for these queries, given the state of all keys and values; one in fp64 is rounded first."""
    return torch.ops.fewer.linear_attention_apply(query, state, eps)


@torch.library.custom_op("fewer::linear_attention_state", mutates_args=(), device_types="cpu")
def _state(key: Tensor, value: Tensor, exact: bool = False) -> Tensor:
    return reference_state(key, value, exact)


@torch.library.custom_op("fewer::linear_attention_apply", mutates_args=(), device_types="cpu")
def _apply(query: Tensor, state: Tensor, eps: float) -> Tensor:
    return reference_apply(query, state, eps)


def reference_state(key: Tensor, value: Tensor, exact: bool = False) -> Tensor:
    """Plain torch, fp32 (float64 stays float64): the oracle of the Triton version."""
    wide = torch.float64 if exact else torch.promote_types(key.dtype, torch.float32)
    keys = key.to(wide).relu()
    values = torch.nn.functional.pad(value.to(wide), (0, 1), value=1.0)
    return torch.einsum("bnhd,bnhe->bhde", values, keys).contiguous()


def reference_apply(query: Tensor, state: Tensor, eps: float) -> Tensor:
    """Plain torch, in fp32 (fp64 for queries in fp64), rounded once at the end."""
    state = state.to(torch.promote_types(query.dtype, torch.float32))
    summed = torch.einsum("bnhe,bhde->bnhd", query.to(state.dtype).relu(), state)
    result = summed[..., :-1] / (summed[..., -1:] + eps)
    if query.dtype == torch.float16:
        result = result.clamp(-65504, 65504)
    return result.to(query.dtype).contiguous()


def reference_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, eps: float, exact: bool = False
) -> Tensor:
    """Both passes in plain torch: the oracle."""
    return reference_apply(query, reference_state(key, value, exact), eps)


_both = torch.library.custom_op(
    "fewer::linear_attention", reference_linear_attention, mutates_args=(), device_types="cpu"
)


@_both.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, eps: float, exact: bool = False) -> Tensor:
    return query.new_empty(query.shape)


@_both.register_kernel("cuda")
def _(query: Tensor, key: Tensor, value: Tensor, eps: float, exact: bool = False) -> Tensor:
    if query.dtype == torch.float64:
        return reference_linear_attention(query, key, value, eps)
    from fewer.kernels.triton.linear_attention import launch_linear_attention

    return launch_linear_attention(query, key, value, eps, exact)


@_state.register_fake
def _(key: Tensor, value: Tensor, exact: bool = False) -> Tensor:
    batch, _, heads, dim = key.shape
    wide = torch.float64 if exact else torch.promote_types(key.dtype, torch.float32)
    return key.new_empty((batch, heads, dim + 1, dim), dtype=wide)


@_apply.register_fake
def _(query: Tensor, state: Tensor, eps: float) -> Tensor:
    return query.new_empty(query.shape)


@_state.register_kernel("cuda")
def _(key: Tensor, value: Tensor, exact: bool = False) -> Tensor:
    if key.dtype == torch.float64:
        return reference_state(key, value)
    from fewer.kernels.triton.linear_attention import launch_state

    return launch_state(key, value, exact=exact)


@_apply.register_kernel("cuda")
def _(query: Tensor, state: Tensor, eps: float) -> Tensor:
    if query.dtype == torch.float64:
        return reference_apply(query, state, eps)
    from fewer.kernels.triton.linear_attention import launch_apply

    return launch_apply(query, state, eps)


def _state_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    key, value = ctx.saved_tensors  # type: ignore[attr-defined]
    keys = key.to(grad.dtype)
    values = torch.nn.functional.pad(value.to(grad.dtype), (0, 1), value=1.0)
    grad_key = torch.einsum("bhde,bnhd->bnhe", grad, values) * (keys > 0)
    grad_value = torch.einsum("bhde,bnhe->bnhd", grad[:, :, :-1], keys.relu())
    return grad_key.to(key.dtype), grad_value.to(value.dtype), None


def _state_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _apply_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    query, kept = ctx.saved_tensors  # type: ignore[attr-defined]
    state = kept.to(torch.promote_types(query.dtype, torch.float32))
    queries = query.to(state.dtype)
    positive = queries.relu()
    summed = torch.einsum("bnhe,bhde->bnhd", positive, state)
    below = summed[..., -1:] + ctx.eps  # type: ignore[attr-defined]
    grad_top = grad.to(state.dtype) / below
    grad_below = -(grad_top * summed[..., :-1]).sum(-1, keepdim=True) / below
    grad_summed = torch.cat([grad_top, grad_below], dim=-1)
    grad_query = torch.einsum("bnhd,bhde->bnhe", grad_summed, state) * (queries > 0)
    grad_state = torch.einsum("bnhd,bnhe->bhde", grad_summed, positive)
    return grad_query.to(query.dtype), grad_state.to(kept.dtype), None


def _apply_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    query, state, eps = inputs
    ctx.save_for_backward(query, state)
    ctx.eps = eps  # type: ignore[attr-defined]


_state.register_autograd(_state_backward, setup_context=_state_context)
_apply.register_autograd(_apply_backward, setup_context=_apply_context)
