"""What one group of layers is quantized from: their 16-bit weights, their biases and sampled inputs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PANEL = {"cpu": 2**19, "cuda": 2**27}
"""Weights that are worked on at once in fp32: 2 MiB stay in a CPU's cache, a GPU takes whole layers."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What calibration kept of one layer's input."""

    rows: Float[Tensor, "rows dim"]
    """A uniform sample of the input's rows, in random order."""
    peak: Float[Tensor, "dim"]
    """Largest magnitude of each channel over *all* rows seen."""


@dataclass(slots=True)
class Part:
    """Layers that read one input and share one low-rank branch (q, k and v, or a single layer)."""

    names: tuple[str, ...]
    weights: list[Float[Tensor, "_ dim"]]
    biases: list[Float[Tensor, "_"] | None]
    samples: Samples | None = None
    unsigned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(out, dim) of all weights below each other."""
        return sum(len(weight) for weight in self.weights), self.weights[0].shape[1]

    @property
    def sampled(self) -> bool:
        """Whether there are input rows to measure with."""
        return self.samples is not None and len(self.samples.rows) > 0

    def rows_of(self, name: str) -> slice:
        """Where the weight of `name` lies in the joined matrix."""
        index = self.names.index(name)
        begin = sum(len(weight) for weight in self.weights[:index])
        return slice(begin, begin + len(self.weights[index]))

    def panels(self) -> Iterator[tuple[Tensor, slice]]:
        """(some rows of one 16-bit weight, where they lie in the joined matrix), in order."""
        begin = 0
        for weight in self.weights:
            for rows in panel_slices(weight):
                yield weight[rows], slice(begin + rows.start, begin + rows.stop)
            begin += len(weight)

    def column_peak(self) -> Float[Tensor, "dim"]:
        """Largest magnitude of each input channel."""
        peaks = [torch.linalg.vector_norm(weight, ord=torch.inf, dim=0) for weight in self.weights]
        return torch.stack(peaks).amax(dim=0).float()


def finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor Inf, found without a copy of the tensor."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def panel_slices(weight: Float[Tensor, "out dim"], times: int = 1) -> Iterator[slice]:
    """Consecutive rows of `weight`, about `times * PANEL` numbers at a time."""
    height = max(16, times * PANEL.get(weight.device.type, PANEL["cpu"]) // max(1, weight.shape[1]))
    for begin in range(0, len(weight), height):
        yield slice(begin, min(begin + height, len(weight)))
