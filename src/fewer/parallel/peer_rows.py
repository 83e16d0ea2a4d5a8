"""Border rows between GPUs of one host without messages: the neighbour's kernel reads them where they lie.

A rank writes its two border rows into memory that its peers can see (symmetric memory of torch, plain loads
over NVLink), computes on, and meets the others at a barrier on the GPU just before it reads theirs. Against a
send and a receive this saves the copies and most of the latency, which is what counts in a small picture.
"""

import torch
from torch import Tensor, distributed

from fewer.parallel.group import Neighbours

MOST_BYTES = 2**23
"""Of one border row. Four of them (two rows, two turns) are held."""


class PeerRows:
    """Places that all ranks of a group on one host can read. Raises `RuntimeError` where there are none.

    Two turns alternate. A place is written again only by the exchange after the next; its writer has then
    passed the barrier of the exchange between them, which its readers reach when they have read.
    """

    def __init__(self, handle: distributed.ProcessGroup | None, device: torch.device) -> None:
        import torch.distributed._symmetric_memory as symmetric

        group = handle or distributed.group.WORLD
        assert group is not None
        self.buffer = symmetric.empty(4 * MOST_BYTES, dtype=torch.uint8, device=device)
        self.places = symmetric.rendezvous(self.buffer, group.group_name)
        self.rank, self.size = group.rank(), group.size()
        self._turn = 0

    def fits(self, first: Tensor, last: Tensor) -> bool:
        """Whether rows like these can go this way: on the GPU, alike, not too large, in units of 16 bytes."""
        alike = first.shape == last.shape and first.dtype == last.dtype
        return first.is_cuda and alike and 0 < first.nbytes <= MOST_BYTES and first.nbytes % 16 == 0

    def start(self, first: Tensor, last: Tensor) -> "PendingRows":
        """Shows the own rows; on the current stream."""
        turn, self._turn = self._turn, 1 - self._turn
        for side, row in enumerate((first, last)):
            if self.rank + (-1, 1)[side] in range(self.size):  # nobody reads beyond the picture's border
                self._place(self.rank, turn, side, row).copy_(row)
        return PendingRows(self, turn, first)

    def read(self, turn: int, like: Tensor) -> Neighbours:
        """The neighbours' rows, where they lie: valid until the exchange after the next begins."""
        self.places.barrier(channel=0)
        before = self._place(self.rank - 1, turn, 1, like) if self.rank > 0 else None
        after = self._place(self.rank + 1, turn, 0, like) if self.rank < self.size - 1 else None
        return before, after

    def _place(self, rank: int, turn: int, side: int, like: Tensor) -> Tensor:
        offset = (2 * turn + side) * MOST_BYTES // like.element_size()
        return self.places.get_buffer(rank, like.shape, like.dtype, offset)


class PendingRows:
    """Rows that are read once everybody has shown his."""

    def __init__(self, rows: PeerRows, turn: int, like: Tensor) -> None:
        self._rows, self._turn, self._like = rows, turn, like
        self._result: Neighbours | None = None

    def wait(self) -> Neighbours:
        if self._result is None:
            self._result = self._rows.read(self._turn, self._like)
        return self._result
