"""Functions of tensors as CUDA graphs: recorded once per form of their inputs, then replayed without Python
and without a launch per kernel. Small networks on a GPU are bound by launches, not by arithmetic.

Inputs and outputs are nested dictionaries, lists and tuples of tensors. On the CPU, or when recording fails
(the log says why), the function is called as it is; results are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

logger = logging.getLogger(__name__)

WARM_UP_RUNS = 3  # of the function before it is recorded: handles, workspaces and plans are made there


@dataclass(slots=True)
class _Recorded:
    """One form of the inputs: the graph, the buffers it reads and those it writes."""

    inputs: list[Tensor]
    graph: torch.cuda.CUDAGraph
    outputs: Any


@dataclass(slots=True)
class GraphedFunction:
    """`function(*inputs)` without gradients of its own; it may change its inputs in place.

    What a call returns lies in the graph's buffers and is overwritten by the next call. An output that is
    handed back as input is not copied, so that a state which is updated in place stays where it is.
    `protects` are tensors (running statistics) that warming up must not change. Inputs on the CPU are moved
    to `device`, by default to that of the first input on a GPU.
    """

    function: Callable[..., Any]
    protects: Sequence[Tensor] = ()
    device: torch.device | None = None
    _recorded: dict[Hashable, _Recorded] = field(default_factory=dict)
    _gave_up: bool = False

    def __call__(self, *inputs: Any) -> Any:
        leaves, form = pytree.tree_flatten(inputs)
        device = self.device or next((leaf.device for leaf in leaves if leaf.is_cuda), None)
        if self._gave_up or device is None or device.type != "cuda":
            return self.function(*inputs)
        key = (str(form), *((leaf.shape, leaf.dtype, _layout(leaf), leaf.requires_grad) for leaf in leaves))
        recorded = self._recorded.get(key)
        if recorded is None:
            try:
                recorded = self._recorded[key] = self._record(leaves, form, device)
            except RuntimeError as error:
                logger.warning("no CUDA graph, running without: %s", error)
                logger.debug("recording failed here", exc_info=True)
                self._gave_up = True
                return self.function(*inputs)
        with torch.no_grad():
            for buffer, leaf in zip(recorded.inputs, leaves, strict=True):
                same = buffer.data_ptr() == leaf.data_ptr()
                if not same:
                    buffer.copy_(leaf, non_blocking=True)
                elif buffer.stride() != leaf.stride():  # a turned view of the buffer itself
                    buffer.copy_(leaf.clone())
        recorded.graph.replay()
        return recorded.outputs

    def forget(self) -> None:
        """Drops all graphs, for instance because something else that the function reads was replaced."""
        self._recorded.clear()

    def _record(self, leaves: list[Tensor], form: pytree.TreeSpec, device: torch.device) -> _Recorded:
        # Buffers keep `requires_grad`: the function sees from it which gradients are wanted.
        buffers = [
            torch.empty_like(leaf.detach(), device=device, memory_format=_layout(leaf))
            .copy_(leaf.detach())
            .requires_grad_(leaf.requires_grad)
            for leaf in leaves
        ]
        kept = [buffer.detach().clone() for buffer in (*buffers, *self.protects)]
        inputs = pytree.tree_unflatten(buffers, form)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self.function(*inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.function(*inputs)
        with torch.no_grad():
            for tensor, value in zip((*buffers, *self.protects), kept, strict=True):
                tensor.copy_(value)
        return _Recorded(buffers, graph, outputs)


def _layout(leaf: Tensor) -> torch.memory_format:
    """Channels last or rows. Not the strides: those of an axis of length 1 mean nothing, and inputs that are
    views of one kind or another would each have a graph, with its memory, of their own."""
    if leaf.ndim != 4 or leaf.is_contiguous():
        return torch.contiguous_format
    last = leaf.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class GraphedLoss:
    """`function(*inputs) -> scalar`, differentiable in every input that asks for it.

    The graph holds the loss and its gradients, so that `backward` costs a product. Second derivatives
    inside the function (gradients of gradients) are recorded with it.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.whole = GraphedFunction(self._with_gradients)

    def __call__(self, *inputs: Any) -> Tensor:
        leaves, _ = pytree.tree_flatten(inputs)
        if not any(leaf.is_cuda for leaf in leaves):
            return self.function(*inputs)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        loss, gradients = self.whole(*inputs)
        return _Known.apply(loss, len(wanted), *wanted, *gradients)  # pyright: ignore

    def _with_gradients(self, *inputs: Any) -> tuple[Tensor, list[Tensor]]:
        leaves, form = pytree.tree_flatten(inputs)
        leaves = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in leaves]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.enable_grad():
            loss = self.function(*pytree.tree_unflatten(leaves, form))
        return loss.detach(), list(torch.autograd.grad(loss, wanted))


class _Known(torch.autograd.Function):
    """A scalar whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*(gradient.clone() for gradient in tensors[count:]))
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [upstream[0] * gradient for gradient in ctx.saved_tensors]
        return (None, None, *gradients, *[None] * ctx.count)


@dataclass(slots=True)
class Graphs:
    """The graphs of one run by name; the first function of a name stays, so it may close over constants
    alone."""

    losses: dict[str, GraphedLoss] = field(default_factory=dict)
    functions: dict[str, GraphedFunction] = field(default_factory=dict)

    def loss(self, name: str, function: Callable[..., Tensor]) -> GraphedLoss:
        return self.losses.setdefault(name, GraphedLoss(function))

    def function(self, name: str, function: Callable[..., Any]) -> GraphedFunction:
        return self.functions.setdefault(name, GraphedFunction(function))
