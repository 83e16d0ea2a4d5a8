"""The places and their turns, with threads for ranks and plain tensors for memory that all of them see."""

import threading
from collections.abc import Sequence

import torch

from fewer.parallel import peer_rows
from fewer.parallel.group import Group
from fewer.parallel.peer_rows import PeerRows
from fewer.parallel.simulated import run_simulated

RANKS = 3


class SharedPlaces:
    """What torch's symmetric memory offers, in one process."""

    def __init__(self, size: int) -> None:
        self.buffers = [torch.zeros(size, dtype=torch.uint8) for _ in range(RANKS)]
        self.meeting = threading.Barrier(RANKS, timeout=20)

    def get_buffer(
        self, rank: int, sizes: Sequence[int], dtype: torch.dtype, offset: int = 0
    ) -> torch.Tensor:
        return self.buffers[rank].view(dtype)[offset:][: torch.Size(sizes).numel()].view(*sizes)

    def barrier(self, channel: int = 0) -> None:
        self.meeting.wait()


def rows_of(places: SharedPlaces, rank: int) -> PeerRows:
    rows = PeerRows.__new__(PeerRows)
    rows.places, rows.rank, rows.size, rows._turn = places, rank, RANKS, 0  # pyright: ignore
    return rows


def test_neighbours_read_each_others_rows_exchange_after_exchange() -> None:
    places = SharedPlaces(4 * peer_rows.MOST_BYTES)

    def rank_main(group: Group) -> None:
        rows = rows_of(places, group.rank)
        for count in range(7):  # more exchanges than turns, of several shapes and number formats
            shape, dtype = ((1, 5, 3), torch.float32) if count % 2 else ((2, 4), torch.float16)
            own = [torch.full(shape, 100 * group.rank + 10 * count + side, dtype=dtype) for side in (0, 1)]
            pending = rows.start(own[0], own[1])
            before, after = pending.wait()
            again, _ = pending.wait()  # asked twice, answered once
            assert again is before
            assert (before is None) == (group.rank == 0) and (after is None) == (group.rank == RANKS - 1)
            if before is not None:
                assert torch.equal(before, own[1] - 100)
            if after is not None:
                assert torch.equal(after, own[0] + 100)

    run_simulated(RANKS, rank_main)


def test_what_does_not_fit_is_left_to_messages() -> None:
    rows = rows_of(SharedPlaces(0), 0)
    row = torch.zeros(8)
    assert not rows.fits(row, row)  # on a CPU
    assert peer_rows.MOST_BYTES % 16 == 0
