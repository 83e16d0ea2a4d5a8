"""One int8 buffer that every layer's 4-bit weights are expanded into, just before they are used.

Reusing the same few megabytes keeps the expanded weights in the GPU's L2 cache (50 MB on Hopper), so the
product reads them from there and the layers stay 4-bit in memory.
"""

import torch
from jaxtyping import Int8
from torch import Tensor


class WeightScratch:
    """Room for the largest layer; give one to all layers of a model, which run one after another."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        # A CUDA graph that was captured with a smaller buffer keeps writing there, so it must stay alive.
        self._retired: list[Tensor] = []

    def reserve(self, elements: int, device: torch.device) -> None:
        """Makes sure `elements` fit; do this for every layer before anything is captured."""
        buffer = self._buffer
        if buffer is not None and buffer.numel() >= elements and buffer.device == device:
            return
        if buffer is not None:
            self._retired.append(buffer)
        with torch.inference_mode(False):
            self._buffer = torch.empty(elements, dtype=torch.int8, device=device)

    def view(self, outputs: int, dim: int, device: torch.device) -> Int8[Tensor, "{outputs} {dim}"]:
        """The first outputs · dim bytes as a matrix. What was there before is gone."""
        self.reserve(outputs * dim, device)
        assert self._buffer is not None
        return self._buffer[: outputs * dim].view(outputs, dim)
