"""A gated recurrent unit that computes nothing on padding and keeps its working set in the processor's cache.

The same equations and parameters as `torch.nn.GRU` (one layer):

    r, z = sigmoid(W_ir x + b_ir + W_hr h + b_hr), sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n    = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h'   = (1 - z) * n + z * h

Histories end at the right edge. Sorted by length, the ones that have begun at a column are the first rows,
so every step is a product over exactly those; rows are taken 256 at a time. The gradient is written out,
because a node per step for every little operation costs more than the products.
[measured: benchmarks/recommend_recbole.py]
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CHUNK_ROWS = 256


def recurrent_states(
    gru: nn.GRU,
    inputs: Float[Tensor, "batch length dim"],
    lengths: Int[Tensor, "batch"],
    last_only: bool = False,
) -> Float[Tensor, "batch kept hidden"]:
    """The state after every row of right-aligned inputs (zero on padding), or after the last row alone.

    For one layer in single precision on a CPU; `gru` holds the parameters.
    """
    parameters = (gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
    return _Recurrence.apply(inputs, lengths, last_only, *parameters)  # pyright: ignore


@dataclass(slots=True)
class _Chunk:
    """What the backward pass needs of some rows; the first axis is time."""

    rows: Tensor
    begun: list[int]
    """How many rows have begun at each step."""
    inputs: Tensor
    gates: Tensor
    """r, z, n after their nonlinearities."""
    inner: Tensor
    """W_hn h + b_hn."""
    states: Tensor
    """One more than steps: the first is zero."""


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, lengths: Tensor, last_only: bool, *parameters: Tensor) -> Tensor:
        width, hidden = inputs.shape[1], parameters[1].shape[1]
        states = inputs.new_zeros(len(inputs), 1 if last_only else width, hidden)
        chunks = []
        for rows in torch.argsort(lengths, descending=True).split(CHUNK_ROWS):
            chunk = _run(rows, lengths[rows], inputs, parameters)
            kept = states.shape[1] if last_only else len(chunk.begun)
            if chunk.begun:
                states[rows, -kept:] = chunk.states[-kept:].transpose(0, 1)
            chunks.append(chunk)
        ctx.chunks, ctx.shape = chunks, inputs.shape
        ctx.save_for_backward(*parameters)
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors
        gradients = [torch.zeros_like(one) for one in parameters]
        inputs = upstream[0].new_zeros(ctx.shape)
        for chunk in ctx.chunks:
            steps = len(chunk.begun)
            if not steps:
                continue
            kept = min(steps, upstream[0].shape[1])
            asked = upstream[0][chunk.rows, -kept:].transpose(0, 1)
            inputs[chunk.rows, -steps:] = _run_back(chunk, asked, parameters, gradients).transpose(0, 1)
        ctx.chunks = []
        return inputs, None, None, *gradients


def _run(rows: Tensor, lengths: Tensor, inputs: Tensor, parameters: tuple[Tensor, ...]) -> _Chunk:
    """Rows sorted by falling length through time."""
    w_input, w_hidden, b_input, b_hidden = parameters
    steps, hidden = int(lengths[0]), w_hidden.shape[1]
    begun = [int(n) for n in (lengths[None] >= torch.arange(steps, 0, -1)[:, None]).sum(1)]
    own = inputs[rows, inputs.shape[1] - steps :].transpose(0, 1).contiguous()
    gates = torch.addmm(b_input, own.flatten(0, 1), w_input.T).view(steps, len(rows), 3 * hidden)
    inner = inputs.new_zeros(steps, len(rows), hidden)
    states = inputs.new_zeros(steps + 1, len(rows), hidden)
    scratch = inputs.new_empty(len(rows), 3 * hidden)
    for step, count in enumerate(begun):
        before, gate = states[step, :count], gates[step, :count]
        product = torch.addmm(b_hidden, before, w_hidden.T, out=scratch[:count])
        inner[step, :count] = product[:, 2 * hidden :]
        gate[:, : 2 * hidden].add_(product[:, : 2 * hidden]).sigmoid_()
        reset, keep, new = gate.split(hidden, dim=1)
        new.addcmul_(reset, inner[step, :count]).tanh_()
        torch.lerp(new, before, keep, out=states[step + 1, :count])
    return _Chunk(rows=rows, begun=begun, inputs=own, gates=gates, inner=inner, states=states)


def _run_back(
    chunk: _Chunk, asked: Tensor, parameters: tuple[Tensor, ...], gradients: list[Tensor]
) -> Tensor:
    """Gradients of the chunk's inputs; those of the parameters are added to `gradients`."""
    w_input, w_hidden, _, _ = parameters
    hidden = w_hidden.shape[1]
    first_asked = len(chunk.begun) - len(asked)
    inner_gradients = torch.zeros_like(chunk.gates)  # of (r, z, W_hn h) before their nonlinearities
    flowing = torch.zeros_like(chunk.states[0])
    for step in range(len(chunk.begun) - 1, -1, -1):
        count = chunk.begun[step]
        now, before, inner = flowing[:count], chunk.states[step, :count], chunk.inner[step, :count]
        if step >= first_asked:
            now.add_(asked[step - first_asked, :count])
        reset, keep, new = chunk.gates[step, :count].split(hidden, dim=1)
        to_reset, to_keep, to_inner = inner_gradients[step, :count].split(hidden, dim=1)
        torch.mul(now, before - new, out=to_keep)
        to_keep.mul_(keep).mul_(1 - keep)
        to_new = (now - now * keep).mul_(1 - new * new)
        torch.mul(to_new, reset, out=to_inner)
        torch.mul(to_inner, inner, out=to_reset)
        to_reset.mul_(1 - reset)
        inner.copy_(to_new)  # its place is free now
        now.mul_(keep).addmm_(inner_gradients[step, :count], w_hidden)
    outer, news = inner_gradients.flatten(0, 1), chunk.inner.flatten(0, 1)
    seen, states = chunk.inputs.flatten(0, 1), chunk.states[:-1].flatten(0, 1)
    both, new = outer[:, : 2 * hidden], slice(2 * hidden, None)
    gradients[0][: 2 * hidden].addmm_(both.T, seen)
    gradients[0][new].addmm_(news.T, seen)
    gradients[1].addmm_(outer.T, states)
    gradients[2][: 2 * hidden] += both.sum(0)
    gradients[2][new] += news.sum(0)
    gradients[3] += outer.sum(0)
    to_inputs = torch.mm(both, w_input[: 2 * hidden]).addmm_(news, w_input[new])
    return to_inputs.view(chunk.inputs.shape)
