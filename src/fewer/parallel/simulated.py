"""N ranks in one process, each a thread, in lock step: the numerics of eight devices on any machine."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

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

Answer = TypeVar("Answer")


class _Board:
    """Where the ranks put what they bring to a collective."""

    def __init__(self, size: int, timeout: float) -> None:
        self.slots: list[object] = [None] * size
        self.barrier = threading.Barrier(size, timeout=timeout)
        self.lock = threading.Lock()
        self.parts: dict[tuple[int, ...], _Board] = {}
        self.timeout = timeout
        self.failed: int | None = None


class SimulatedGroup:
    """A rank's view of the board."""

    def __init__(self, board: _Board, rank: int, size: int) -> None:
        self._board, self.rank, self.size, self.traffic = board, rank, size, Traffic()

    def start_sum(self, tensor: Tensor) -> Pending[Tensor]:
        count_sum(self.traffic, tensor, self.size)
        # Added up in rank order by every rank, so all of them hold the same bits.
        everyone = self._exchange(tensor)
        total = everyone[0].clone()
        for other in everyone[1:]:
            total += other
        return Done(total)  # pyright: ignore

    def start_neighbours(self, first: Tensor, last: Tensor, keep: bool = False) -> Pending[Neighbours]:
        everyone = self._exchange((first, last))
        before = everyone[self.rank - 1][1].clone() if self.rank > 0 else None
        after = everyone[self.rank + 1][0].clone() if self.rank < self.size - 1 else None
        count_neighbours(self.traffic, (before, after), self.size)
        return Done((before, after))  # pyright: ignore

    def start_gather(self, tensor: Tensor, lengths: Sequence[int], axis: int) -> Pending[Tensor]:
        everyone = self._exchange(tensor)
        assert [part.shape[axis] for part in everyone] == list(lengths)
        whole = torch.cat(everyone, dim=axis)
        count_gather(self.traffic, tensor, whole, self.size)
        return Done(whole)  # pyright: ignore

    def gather_object(self, value: object) -> list[object]:
        return self._exchange(value)

    def split(self, partition: Sequence[Sequence[int]]) -> "SimulatedGroup":
        part = next(tuple(part) for part in partition if self.rank in part)
        with self._board.lock:
            board = self._board.parts.setdefault(part, _Board(len(part), self._board.timeout))
        return SimulatedGroup(board, part.index(self.rank), len(part))

    def _exchange(self, value: object) -> list:
        board = self._board
        board.slots[self.rank] = value
        try:
            board.barrier.wait()
            everyone = list(board.slots)
            board.barrier.wait()  # nobody overwrites a slot that is still being read
        except threading.BrokenBarrierError as error:
            raise GroupFailed(f"rank {board.failed} ended early", board.failed) from error
        return everyone


def lone_rank() -> SimulatedGroup:
    """A group of one, for code that wants a group where there are no others."""
    return SimulatedGroup(_Board(1, 60.0), 0, 1)


def run_simulated(
    size: int, rank_main: Callable[[SimulatedGroup], Answer], timeout: float = 60.0
) -> list[Answer]:
    """Runs `rank_main(group)` as `size` ranks; their answers in rank order, or the first error raised."""
    board = _Board(size, timeout)
    answers: list = [None] * size
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            with torch.no_grad():
                answers[rank] = rank_main(SimulatedGroup(board, rank, size))
        except BaseException as error:
            if not errors:
                board.failed = rank
            errors[rank] = error
            for open_board in [board, *board.parts.values()]:
                open_board.failed = board.failed
                open_board.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[board.failed if board.failed in errors else min(errors)]
    return answers
