"""Buffers that layers' 4-bit weights are expanded into, just before they are used.

Reusing the same few megabytes keeps the expanded weights in the GPU's L2 cache (50 MB on Hopper), so the
product reads them from there and the layers stay 4-bit in memory. There are two buffers, so that the next
layer's weight can be expanded beside the product of the present one.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Int8
from torch import Tensor


class WeightScratch:
    """Room for the largest layer, twice; give one to all layers of a model, which run one after another."""

    def __init__(self) -> None:
        self._buffers: list[Tensor | None] = [None, None]
        self._turn = 0
        self._early: tuple[object, Tensor, int] | None = None
        # A CUDA graph that was captured with a smaller buffer keeps writing there, so it must stay alive.
        self._retired: list[Tensor] = []
        self._side: torch.cuda.Stream | None = None
        self._busy = False

    def reserve(self, elements: int, device: torch.device) -> None:
        """Makes sure `elements` fit; do this for every layer before anything is captured."""
        for turn, buffer in enumerate(self._buffers):
            if buffer is not None and buffer.numel() >= elements and buffer.device == device:
                continue
            if buffer is not None:
                self._retired.append(buffer)
            with torch.inference_mode(False):
                self._buffers[turn] = torch.empty(elements, dtype=torch.int8, device=device)

    def view(self, outputs: int, dim: int, device: torch.device) -> Int8[Tensor, "{outputs} {dim}"]:
        """The first outputs · dim bytes of the buffer whose turn it is. What was there before is gone."""
        self.reserve(outputs * dim, device)
        self._turn = 1 - self._turn
        if self._early is not None and self._early[2] == self._turn:
            self._early = None
        buffer = self._buffers[self._turn]
        assert buffer is not None
        return buffer[: outputs * dim].view(outputs, dim)

    def keep(self, owner: object, weight: Tensor) -> None:
        """Remembers that `weight`, in the last `view`, was expanded early for `owner`."""
        self._early = (owner, weight, self._turn)

    def take(self, owner: object) -> Tensor | None:
        """What was expanded early for `owner`, once; None if nothing was."""
        if self._early is None or self._early[0] is not owner:
            return None
        weight, self._early = self._early[1], None
        return weight

    def beside(self, device: torch.device) -> AbstractContextManager[object]:
        """What is launched inside runs on a stream of its own, after all that was launched before.

        Inside a graph that is captured it becomes a branch. `join` before reading what it wrote.
        """
        if device.type != "cuda":
            return nullcontext()
        if self._side is None or self._side.device != device:
            self._side = torch.cuda.Stream(device)
        self._side.wait_stream(torch.cuda.current_stream(device))
        self._busy = True
        return torch.cuda.stream(self._side)

    def join(self, device: torch.device) -> None:
        """What is launched from now on waits for what ran beside."""
        if self._side is not None and self._busy:
            torch.cuda.current_stream(device).wait_stream(self._side)
            self._busy = False
