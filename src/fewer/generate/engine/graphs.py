"""One step of a network as a CUDA graph per shape: replayed without Python, launches or waiting in between.

Inputs that change in each step (latents, time) are copied into the graph's own buffers; constants of a
picture (keys and values of the text) are copied once, when they are others than before. On the CPU the same
buffers and the same bookkeeping serve a plain call, which is how this file is tested there.
"""

import copy
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UP_RUNS = 3


@dataclass(slots=True)
class _Captured:
    """Buffers of one shape, and the graph that reads and writes them (None: call the function)."""

    inputs: list[Tensor]
    constants: list[Tensor]
    source: object = None
    """Whose constants are in the buffers; held so that its identity cannot be taken over by another."""
    graph: torch.cuda.CUDAGraph | None = None
    output: Tensor | None = None


@dataclass(slots=True)
class StepGraphs:
    """`function(*inputs, *constants) -> Tensor`, captured once per shape and version.

    The least recently used of more than `limit` shapes is forgotten. If capturing fails, the function is
    called as it is from then on, and the log says why.
    """

    function: Callable[..., Tensor]
    limit: int = 4
    warm_up_seconds: float = 0.0
    """Time spent on compiling, warming up and capturing so far."""
    _captured: OrderedDict[Hashable, _Captured] = field(default_factory=OrderedDict)

    @torch.no_grad()
    def __call__(
        self, inputs: Sequence[Tensor], constants: Sequence[Tensor], source: object, version: Hashable
    ) -> Tensor:
        """`source` stands for the constants' values: while it is the same object, nothing is copied.

        `version` stands for everything else that the function reads; another version is captured anew.
        """
        key = (version, *map(_form, inputs), "constants", *map(_form, constants))
        captured = self._captured.get(key)
        if captured is None:
            captured = self._add(key, inputs, constants, version)
        self._captured.move_to_end(key)
        if captured.source is not source:
            _fill(captured.constants, constants)
            captured.source = source
        _fill(captured.inputs, inputs)
        if captured.graph is None:
            if inputs[0].is_cuda and captured.output is None:
                self._capture(captured)
            if captured.graph is None:
                return self.function(*captured.inputs, *captured.constants)
        captured.graph.replay()
        assert captured.output is not None
        return captured.output.clone()

    def __deepcopy__(self, memo: dict) -> "StepGraphs":
        """For a copy of the network, which has captured nothing: graphs cannot be copied."""
        return StepGraphs(copy.deepcopy(self.function, memo), self.limit)

    def forget(self) -> None:
        """Drops all graphs and gives their memory back."""
        self._captured.clear()

    def __len__(self) -> int:
        return len(self._captured)

    def _add(
        self, key: Hashable, inputs: Sequence[Tensor], constants: Sequence[Tensor], version: Hashable
    ) -> _Captured:
        # Other versions belong to weights or adapters that are gone.
        for old in [old for old in self._captured if old[0] != version]:  # pyright: ignore
            del self._captured[old]
        while len(self._captured) >= self.limit:
            self._captured.popitem(last=False)
        # Tensors born in inference mode could not be written to outside it.
        with torch.inference_mode(False):
            buffers = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
            kept = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in constants]
        captured = self._captured[key] = _Captured(buffers, kept)
        return captured

    def _capture(self, captured: _Captured) -> None:
        """Compiles and warms up on a side stream, as capturing demands, then records the graph."""
        began = time.perf_counter()
        arguments = (*captured.inputs, *captured.constants)
        device = arguments[0].device
        side = torch.cuda.Stream(device)
        try:
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_RUNS):
                    captured.output = self.function(*arguments)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # A server has other threads, whose calls must not spoil the capture of this one.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                captured.output = self.function(*arguments)
            captured.graph = graph
        except RuntimeError as error:
            logger.warning("no CUDA graph for this shape, running without: %s", error)
        self.warm_up_seconds += time.perf_counter() - began


def _fill(buffers: list[Tensor], values: Sequence[Tensor]) -> None:
    if buffers:
        torch._foreach_copy_(buffers, list(values))


def _form(tensor: Tensor) -> Hashable:
    return (tuple(tensor.shape), tensor.dtype, tensor.device)
