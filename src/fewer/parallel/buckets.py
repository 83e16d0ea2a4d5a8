"""Small exchanges travel together: flattened into one tensor, sent when enough have come or the step ends.

What may arrive late (displaced mode) need not pay one latency a layer (DistriFusion's `comm_checkpoint`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewer.parallel.group import Group, Neighbours, Pending


@dataclass(slots=True)
class SumBucket:
    """Tensors of one dtype whose sums over the ranks are asked for at once."""

    group: Group
    parts: list[Tensor] = field(default_factory=list)
    pending: Pending[Tensor] | None = None

    def add(self, tensor: Tensor) -> Pending[Tensor]:
        """The sum of `tensor` over the ranks, once the bucket is sent."""
        index = len(self.parts)
        self.parts.append(tensor)
        return _Share(lambda: self._sum(index))  # pyright: ignore[reportReturnType]

    def send(self) -> None:
        """Starts the exchange; nothing can be added afterwards."""
        if self.pending is None:
            self.pending = self.group.start_sum(torch.cat([part.flatten() for part in self.parts]))

    def _sum(self, index: int) -> Tensor:
        self.send()
        assert self.pending is not None
        return _piece(self.pending.wait(), self.parts, index)


@dataclass(slots=True)
class NeighbourBucket:
    """Border rows of several layers, exchanged at once."""

    group: Group
    firsts: list[Tensor] = field(default_factory=list)
    lasts: list[Tensor] = field(default_factory=list)
    pending: Pending[Neighbours] | None = None

    def add(self, first: Tensor, last: Tensor) -> Pending[Neighbours]:
        """The neighbours' rows for this layer, once the bucket is sent."""
        index = len(self.firsts)
        self.firsts.append(first)
        self.lasts.append(last)
        return _Share(lambda: self._rows(index))  # pyright: ignore[reportReturnType]

    def send(self) -> None:
        """Starts the exchange; nothing can be added afterwards."""
        if self.pending is None:
            first, last = (torch.cat([part.flatten() for part in side]) for side in (self.firsts, self.lasts))
            self.pending = self.group.start_neighbours(first, last, keep=True)

    def _rows(self, index: int) -> Neighbours:
        self.send()
        assert self.pending is not None
        before, after = self.pending.wait()
        # The rank before sends its last rows, the rank after its first ones: shapes are those of the own.
        return (
            None if before is None else _piece(before, self.lasts, index),
            None if after is None else _piece(after, self.firsts, index),
        )


@dataclass(frozen=True, slots=True)
class _Share:
    result: Callable[[], Any]

    def wait(self) -> Any:
        return self.result()


def _piece(flat: Tensor, parts: list[Tensor], index: int) -> Tensor:
    start = sum(part.numel() for part in parts[:index])
    return flat[start : start + parts[index].numel()].view(parts[index].shape)
