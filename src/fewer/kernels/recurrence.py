"""A gated recurrent unit over histories that end at the right edge, with its gradient, for training on a GPU.

The equations of `torch.nn.GRU` (one layer):

    r, z = sigmoid(W_ir x + b_ir + W_hr h + b_hr), sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n    = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h'   = (1 - z) * n + z * h

Only the walk through time is a kernel of ours; what all steps can do at once is a product over all of them.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

HIDDEN_SIZES = (16, 32, 64, 128)  # the state of sixteen histories stays in registers


def recurrent_walk(
    inputs: Float[Tensor, "batch width dim"],
    lengths: Int[Tensor, "batch"],
    parameters: tuple[Tensor, Tensor, Tensor, Tensor],
    last_only: bool = False,
) -> Float[Tensor, "batch kept hidden"]:
    """The state after every row (zero before a history begins), or after the last row alone.

    `parameters` are W_i (3 hidden, dim), W_h (3 hidden, hidden), b_i and b_h in single precision, hidden one
    of `HIDDEN_SIZES`. The recurrent product is rounded as cuDNN's is (`torch.backends.cudnn.allow_tf32`).
    """
    return _Walk.apply(inputs, lengths, last_only, *parameters)  # pyright: ignore


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, lengths: Tensor, last_only: bool, *parameters: Tensor) -> Tensor:
        from fewer.kernels.triton.recurrence import launch_recurrence

        w_input, w_hidden, b_input, b_hidden = parameters
        gates = torch.addmm(b_input, inputs.flatten(0, 1), w_input.t())
        gates = gates.view(*inputs.shape[:2], len(b_input))
        lengths = lengths.to(torch.int32)
        inner, states = launch_recurrence(gates, lengths, w_hidden, b_hidden)
        ctx.walked = gates, inner, states, lengths
        ctx.save_for_backward(inputs, w_input, w_hidden)
        return states[:, -1:].clone() if last_only else states.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        from fewer.kernels.triton.recurrence import launch_recurrence_backward

        inputs, w_input, w_hidden = ctx.saved_tensors
        gates, inner, states, lengths = ctx.walked
        del ctx.walked
        launch_recurrence_backward(gates, inner, states, upstream[0], lengths, w_hidden)
        hidden = inner.shape[2]
        outer, own = gates.flatten(0, 1), inner.flatten(0, 1)
        before = torch.nn.functional.pad(states[:, :-1], (0, 0, 1, 0)).flatten(0, 1)
        both = outer[:, : 2 * hidden]
        to_bias, to_own = outer.sum(0), own.sum(0)
        return (
            (outer @ w_input).view_as(inputs),
            None,
            None,
            outer.t() @ inputs.flatten(0, 1),
            torch.cat([both.t() @ before, own.t() @ before]),
            to_bias,
            torch.cat([to_bias[: 2 * hidden], to_own]),
        )
