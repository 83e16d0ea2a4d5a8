"""What a rank needs of its group: sums, rows of the neighbours, and whole images; and what it cost.

Each collective is started and waited for in two calls, so that work can stand between them. A group of
processes (`process_group.py`) and one simulated by threads (`simulated.py`) behave alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from fewer.core.errors import FewerError

Result = TypeVar("Result", covariant=True)
Neighbours = tuple[Tensor | None, Tensor | None]


class GroupFailed(FewerError):
    """A rank of the group is gone or stuck; `rank` is the one, where it is known."""

    exit_code = 1

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


@runtime_checkable
class Pending(Protocol[Result]):
    """A collective on its way."""

    def wait(self) -> Result: ...


@dataclass(slots=True)
class Traffic:
    """What this rank received so far. All-reduce counts as a ring: 2 (N-1)/N of the tensor."""

    sums: int = 0
    neighbours: int = 0
    gathers: int = 0
    sum_bytes: float = 0
    neighbour_bytes: int = 0
    gather_bytes: int = 0

    @property
    def collectives(self) -> int:
        """Number of exchanges of any kind."""
        return self.sums + self.neighbours + self.gathers

    def clear(self) -> None:
        """Back to zero."""
        self.sums = self.neighbours = self.gathers = self.neighbour_bytes = self.gather_bytes = 0
        self.sum_bytes = 0


@runtime_checkable
class Group(Protocol):
    """Ranks 0 .. size-1 that call the same collectives in the same order."""

    rank: int
    size: int
    traffic: Traffic

    def start_sum(self, tensor: Tensor) -> Pending[Tensor]:
        """Sum over the ranks."""
        ...

    def start_neighbours(self, first: Tensor, last: Tensor, keep: bool = False) -> Pending[Neighbours]:
        """Sends `first` to the rank before and `last` to the rank after; gives (its last, its first).

        None stands where there is no neighbour. What comes may be overwritten by the exchange after the next,
        unless the caller means to `keep` it.
        """
        ...

    def start_gather(self, tensor: Tensor, lengths: Sequence[int], axis: int) -> Pending[Tensor]:
        """All ranks' tensors, joined along `axis`, where rank i brings `lengths[i]`."""
        ...

    def gather_object(self, value: object) -> list[object]:
        """Every rank's small value, in rank order."""
        ...

    def split(self, partition: Sequence[Sequence[int]]) -> "Group":
        """The subgroup this rank belongs to; `partition` lists every rank once."""
        ...


def count_sum(traffic: Traffic, tensor: Tensor, size: int) -> None:
    """Books an all-reduce."""
    if size > 1:
        traffic.sums += 1
        traffic.sum_bytes += 2 * (size - 1) / size * tensor.numel() * tensor.element_size()


def count_neighbours(traffic: Traffic, received: Neighbours, size: int) -> None:
    """Books an exchange with the neighbours."""
    if size > 1:
        traffic.neighbours += 1
        traffic.neighbour_bytes += sum(
            rows.numel() * rows.element_size() for rows in received if rows is not None
        )


def count_gather(traffic: Traffic, own: Tensor, whole: Tensor, size: int) -> None:
    """Books an all-gather."""
    if size > 1:
        traffic.gathers += 1
        traffic.gather_bytes += (whole.numel() - own.numel()) * own.element_size()


@dataclass(frozen=True, slots=True)
class Done:
    """A result that is already there."""

    result: Tensor | Neighbours

    def wait(self) -> Tensor | Neighbours:
        return self.result
