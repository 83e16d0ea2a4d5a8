"""A group of processes: torch.distributed with NCCL between GPUs, gloo between CPUs."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from fewer.parallel.group import (
    Done,
    GroupFailed,
    Neighbours,
    Pending,
    Traffic,
    count_gather,
    count_neighbours,
    count_sum,
)
from fewer.parallel.heartbeat import Heartbeat
from fewer.parallel.one_shot import OneShotSums
from fewer.parallel.peer_exchange import PeerExchange
from fewer.parallel.peer_rows import PeerRows

Place = TypeVar("Place")


@dataclass(slots=True)
class Meetings:
    """How often this process has met others in symmetric memory, in whatever group.

    torch numbers these meetings per process and takes the number for a part of the meeting place: ranks that
    have met others more or less often before would wait for each other for ever.
    """

    count: int = 0


class ProcessGroup:
    """Ranks of an initialised torch.distributed world, or of a part of it."""

    def __init__(
        self,
        ranks: Sequence[int] | None = None,
        handle: distributed.ProcessGroup | None = None,
        heartbeat: Heartbeat | None = None,
        timeout_seconds: float = 60.0,
        meetings: Meetings | None = None,
    ) -> None:
        self._handle, self._timeout = handle, timeout_seconds
        self._meetings = meetings or Meetings()
        self.heartbeat = heartbeat
        """Watches graphs, which torch.distributed's own timeout does not see."""
        self.kept: dict[str, object] = {}
        """What this rank keeps from call to call."""
        self._ranks = list(ranks) if ranks is not None else list(range(distributed.get_world_size()))
        self.size = len(self._ranks)
        self.rank = self._ranks.index(distributed.get_rank())
        self.traffic = Traffic()
        self.one_shot: OneShotSums | None = None
        """Where set, small sums between GPUs go through symmetric memory."""
        self.peer_rows: PeerRows | None = None
        """Where set, border rows between GPUs are read where they lie."""
        self.peer_exchange: PeerExchange | None = None
        """Where set, blocks of the engine's Sana exchange inside their own kernels."""
        self.rows_by_gather = False
        """Exchange border rows by all-gather, where a backend cannot send and receive."""

    def use_one_shot(self, device: torch.device) -> None:
        """From now on small sums are made in one shot. All ranks must call it, with GPUs of one host.

        Raises `RuntimeError` where there is no symmetric memory, or where the ranks cannot meet in it.
        """
        self.one_shot = self._meet(lambda: OneShotSums(self._handle, device))

    def use_peer_rows(self, device: torch.device) -> None:
        """From now on neighbours read border rows directly; as `use_one_shot`."""
        self.peer_rows = self._meet(lambda: PeerRows(self._handle, device))

    def use_peer_exchange(self, device: torch.device) -> None:
        """From now on a Sana block's kernels exchange by themselves; as `use_one_shot`."""
        self.peer_exchange = self._meet(lambda: PeerExchange.meet(self._handle, device))

    def _meet(self, place: Callable[[], Place]) -> Place:
        counts = self.gather_object(self._meetings.count)
        if len(set(counts)) > 1:
            raise RuntimeError(f"its ranks have met others {counts} times, which torch cannot bring together")
        self._meetings.count += 1
        try:
            return place()
        except RuntimeError:  # who knows how far it came: never again with others
            self._meetings.count = -1 - self._ranks[self.rank]
            raise

    def start_sum(self, tensor: Tensor) -> Pending[Tensor]:
        if self.one_shot is not None and self.size > 1 and self.one_shot.fits(tensor):
            count_sum(self.traffic, tensor, self.size)
            return Done(self.one_shot.sum(tensor))  # pyright: ignore[reportReturnType]
        total = tensor.contiguous().clone()
        count_sum(self.traffic, total, self.size)
        if self.size == 1:
            return _Work([], lambda: total, self)
        work = self._guard(lambda: distributed.all_reduce(total, group=self._handle, async_op=True))
        return _Work([work], lambda: total, self)

    def start_neighbours(self, first: Tensor, last: Tensor, keep: bool = False) -> Pending[Neighbours]:
        if self.peer_rows is not None and not keep and self.size > 1 and self.peer_rows.fits(first, last):
            sides = (self.rank > 0, self.rank < self.size - 1)
            count_neighbours(self.traffic, tuple(first if side else None for side in sides), self.size)  # pyright: ignore[reportArgumentType]
            return self.peer_rows.start(first, last)
        if self.rows_by_gather and self.size > 1:
            return self._neighbours_by_gather(first, last)
        before = torch.empty_like(last, memory_format=torch.contiguous_format) if self.rank > 0 else None
        after = (
            torch.empty_like(first, memory_format=torch.contiguous_format)
            if self.rank < self.size - 1
            else None
        )
        operations = []
        if before is not None:
            peer = self._ranks[self.rank - 1]
            operations.append(distributed.P2POp(distributed.isend, first.contiguous(), peer, self._handle))
            operations.append(distributed.P2POp(distributed.irecv, before, peer, self._handle))
        if after is not None:
            peer = self._ranks[self.rank + 1]
            operations.append(distributed.P2POp(distributed.isend, last.contiguous(), peer, self._handle))
            operations.append(distributed.P2POp(distributed.irecv, after, peer, self._handle))
        works = self._guard(lambda: distributed.batch_isend_irecv(operations)) if operations else []
        count_neighbours(self.traffic, (before, after), self.size)
        return _Work(works, lambda: (before, after), self)

    def _neighbours_by_gather(self, first: Tensor, last: Tensor) -> Pending[Neighbours]:
        own = torch.cat([first.flatten(), last.flatten()])
        parts = [torch.empty_like(own) for _ in range(self.size)]
        work = self._guard(lambda: distributed.all_gather(parts, own, group=self._handle, async_op=True))

        def pick() -> Neighbours:
            before = parts[self.rank - 1][first.numel() :].view(last.shape) if self.rank > 0 else None
            more = self.rank < self.size - 1
            after = parts[self.rank + 1][: first.numel()].view(first.shape) if more else None
            count_neighbours(self.traffic, (before, after), self.size)
            return before, after

        return _Work([work], pick, self)

    def start_gather(self, tensor: Tensor, lengths: Sequence[int], axis: int) -> Pending[Tensor]:
        own = tensor.transpose(0, axis)
        longest, even = max(lengths), len(set(lengths)) == 1
        if even:
            padded = own.contiguous()
        else:  # NCCL wants equal sizes: pad the last rows, cut them off again
            padded = own.new_zeros(longest, *own.shape[1:])
            padded[: own.shape[0]] = own
        whole_shape = (len(lengths) * longest, *padded.shape[1:])
        parts = padded.clone() if self.size == 1 else padded.new_empty(whole_shape)
        works = []
        if self.size > 1:
            works = [self._guard(lambda: gather_once(parts, padded, group=self._handle, async_op=True))]

        def join() -> Tensor:
            whole = parts
            if not even:
                each = zip(parts.split(longest), lengths, strict=True)
                whole = torch.cat([part[:length] for part, length in each])
            whole = whole.transpose(0, axis).contiguous()
            count_gather(self.traffic, tensor, whole, self.size)
            return whole

        return _Work(works, join, self)

    def gather_object(self, value: object) -> list[object]:
        values: list[object] = [None] * self.size
        self._guard(lambda: distributed.all_gather_object(values, value, group=self._handle))
        return values

    def split(self, partition: Sequence[Sequence[int]]) -> "ProcessGroup":
        part = next(part for part in partition if self.rank in part)
        ranks = [self._ranks[rank] for rank in part]
        self._level()
        handle = self._guard(lambda: self._new_group(ranks))
        mine = ProcessGroup(ranks, handle, self.heartbeat, self._timeout, self._meetings)  # pyright: ignore[reportArgumentType]
        if self.one_shot is not None and mine.size > 1:
            with contextlib.suppress(RuntimeError):
                mine.use_one_shot(self.one_shot.buffer.device)
        if self.peer_rows is not None and mine.size > 1:
            with contextlib.suppress(RuntimeError):
                mine.use_peer_rows(self.peer_rows.buffer.device)
        if self.peer_exchange is not None and mine.size > 1:
            with contextlib.suppress(RuntimeError):
                mine.use_peer_exchange(self.peer_exchange.own.device)
        return mine

    def _new_group(self, ranks: Sequence[int]) -> object:
        # Its members alone make it: the world's other ranks may be busy with something else.
        timeout = timedelta(seconds=self._timeout)
        return distributed.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)

    def _level(self) -> None:
        """Brings all ranks to the same number of groups made, which torch puts into the name of the next."""
        made = len(distributed.distributed_c10d._world.pg_names)
        most = max(int(count) for count in self.gather_object(made))  # pyright: ignore[reportArgumentType]
        for _ in range(most - made):
            self._new_group([self._ranks[self.rank]])

    def _guard(self, call: Callable) -> object:
        try:
            return call()
        except (RuntimeError, ValueError) as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> GroupFailed:
        """Names this rank's view of what happened; the launcher knows which rank went first."""
        return GroupFailed(
            f"rank {self.rank} of {self.size} lost its group ({str(error).splitlines()[0][:160]}); "
            "a rank died or did not answer in time: run again, or with fewer devices"
        )


def gather_once(output: Tensor, tensor: Tensor, **options: Any) -> Any:
    """All ranks' equal tensors, one behind the other, in one tensor; torch renamed what does it in 2.13."""
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    return gather(output, tensor, **options)


class _Work:
    """Handles of torch.distributed and what to do when all are done."""

    def __init__(self, works: Sequence, finish: Callable, group: ProcessGroup) -> None:
        self._works, self._group = list(works), group
        self._finish: Callable[[], Any] | None = finish
        self._result: Any = None

    def wait(self):  # a Tensor or Neighbours, as `finish` gives; may be called again
        if self._result is not None:
            return self._result
        for work in self._works:
            try:
                if work.wait() is False:
                    raise RuntimeError("a collective did not finish")
            except RuntimeError as error:
                raise self._group.failure(error) from error
        assert self._finish is not None
        self._result = self._finish()
        # Parts that were joined are not held beside the whole.
        self._works, self._finish = [], None
        return self._result
