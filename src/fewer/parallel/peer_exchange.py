"""A Sana block's two exchanges without collectives: its own kernels write where the peers' kernels read.

A rank's kernel writes the attention's state (or its border rows) into the memory of every peer that reads it
and raises a count there; the kernel that reads waits for the count (symmetric memory of torch, plain stores
over NVLink, no multicast). Nothing is launched for an exchange, and what is written travels while other
programs of the same kernels compute. Needs GPUs of one host.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from fewer.parallel.group import Traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_GROUPS = 2048
"""Pictures times pairs of heads that can be counted apart."""
MOST_STATE = 5 * 2**20
"""Bytes of one rank's states in one exchange."""
MOST_ROW = 6 * 2**20
"""Bytes of one border row of all pictures."""
_HEADER = 4 * (2 * MOST_GROUPS + 32)  # counts of both turns: states, then rows; all in whole 64 bytes

Heads = Float[Tensor, "batch tokens heads head_dim"]


class PeerExchange:
    """One rank's memory for exchanges, and where the others' are.

    Two turns alternate from layer to layer. A place is written again only by the exchange after the next; its
    writer has then passed the exchange between them, which its readers reach when they have read. All ranks
    must make the same exchanges in the same order, and meet otherwise (a step's gather) before they begin
    with turn 0 again.
    """

    def __init__(self, own: Tensor, addresses: "Sequence[int]", rank: int) -> None:
        """`own` are zeroed bytes, `addresses` where each rank's lie, `room(size)` bytes each."""
        self.own, self.rank, self.size = own, rank, len(addresses)
        self.peers = torch.tensor(addresses, dtype=torch.int64, device=own.device)
        self.goals = torch.zeros(2, MOST_GROUPS, dtype=torch.int32, device=own.device)
        self.reached = torch.zeros(2, 2, dtype=torch.int32, device=own.device)
        self.ticket = torch.zeros(1, dtype=torch.int32, device=own.device)

    @classmethod
    def meet(cls, handle: distributed.ProcessGroup | None, device: torch.device) -> "PeerExchange":
        """Of all ranks of a group, who must all call it. Raises `RuntimeError` without symmetric memory."""
        import torch.distributed._symmetric_memory as symmetric

        group = handle or distributed.group.WORLD
        assert group is not None
        own = symmetric.empty(room(group.size()), dtype=torch.uint8, device=device).zero_()
        torch.cuda.synchronize(device)  # nobody writes before all are zeroed
        places = symmetric.rendezvous(own, group.group_name)
        if places.buffer_ptrs[group.rank()] != own.data_ptr():
            raise RuntimeError("the memory does not begin where its group sees it begin")
        places.barrier(channel=0)
        exchange = cls(own, list(places.buffer_ptrs), group.rank())
        exchange.places = places  # pyright: ignore[reportAttributeAccessIssue] keeps the mapping alive
        return exchange

    def fits_state(self, key: Heads, longest: int) -> bool:
        """Whether keys like these can go this way; `longest` are the tokens of the largest band."""
        from fewer.kernels.triton.peer_state import parts_of

        batch, _, heads, dim = key.shape
        needed = parts_of(longest) * batch * heads * (dim + 1) * dim * 4
        return key.dtype != torch.float64 and needed <= MOST_STATE and batch * heads <= MOST_GROUPS

    def fits_rows(self, numbers: int, dtype: torch.dtype) -> bool:
        """Whether a border row of so many numbers, all pictures together, can go this way."""
        return dtype != torch.float64 and numbers * dtype.itemsize <= MOST_ROW

    def attend(self, query: Heads, key: Heads, value: Heads, longest: int, turn: int) -> Heads:
        """Linear attention of the own band's queries to all bands' keys and values."""
        self.share(key, value, longest, turn)
        return self.read(query, longest, turn)

    def share(self, key: Heads, value: Heads, longest: int, turn: int) -> None:
        """Writes the own band's state to every rank."""
        from fewer.kernels.triton.peer_state import launch_shared_state

        place = (_HEADER + turn * self.size * MOST_STATE) // 4
        launch_shared_state(
            key, value, self.peers, self.goals[turn], self.rank, place, turn * MOST_GROUPS, longest
        )

    def read(self, query: Heads, longest: int, turn: int, eps: float = 1e-15) -> Heads:
        """What the own queries find in the sum of all ranks' states, once these have come."""
        from fewer.kernels.triton.peer_state import launch_waiting_apply, parts_of

        batch, _, heads, dim = query.shape
        shape = (self.size * parts_of(longest), batch, heads, dim + 1, dim)
        begin = _HEADER + turn * self.size * MOST_STATE
        states = self.own[begin : begin + self.size * MOST_STATE].view(torch.float32)
        counts = self.own[:_HEADER].view(torch.int32)[turn * MOST_GROUPS :]
        return launch_waiting_apply(
            query, states[: torch.Size(shape).numel()].view(shape), counts, self.goals[turn], eps
        )

    def depthwise(
        self,
        features: Float[Tensor, "batch height width two_channels"],
        weight: Float[Tensor, "two_channels 3 3"],
        bias: Float[Tensor, " two_channels"],
        turn: int,
        programs: str = "all",
    ) -> Float[Tensor, "batch height width channels"]:
        """The gated depthwise convolution of the own band, border rows of the neighbours included."""
        from fewer.kernels.triton.peer_depthwise import launch_peer_depthwise

        begin = _HEADER + 2 * self.size * MOST_STATE + turn * 2 * MOST_ROW
        rows = [
            self.own[begin + side * MOST_ROW : begin + (side + 1) * MOST_ROW].view(features.dtype)
            for side in (0, 1)
        ]
        itemsize, count = features.element_size(), 2 * MOST_GROUPS + 16 * turn
        counters = (
            self.own[4 * count : 4 * count + 8].view(torch.int32), self.reached[turn], self.ticket
        )  # fmt: skip
        return launch_peer_depthwise(
            features, weight, bias, self.peers,
            (rows[0] if self.rank > 0 else None, rows[1] if self.rank < self.size - 1 else None),
            counters, self.rank, (begin // itemsize, (begin + MOST_ROW) // itemsize), count, programs,
        )  # fmt: skip

    def book_state(self, traffic: Traffic, key: Heads, longest: int) -> None:
        """Counts what this rank receives where keys like these are attended to."""
        from fewer.kernels.triton.peer_state import parts_of

        batch, _, heads, dim = key.shape
        traffic.sums += 1
        traffic.sum_bytes += (self.size - 1) * parts_of(longest) * batch * heads * (dim + 1) * dim * 4

    def book_rows(self, traffic: Traffic, nbytes: int) -> None:
        """Counts the border rows that this rank receives in one layer, of so many bytes each."""
        traffic.neighbours += 1
        traffic.neighbour_bytes += nbytes * ((self.rank > 0) + (self.rank < self.size - 1))


def room(size: int) -> int:
    """Bytes of a rank's memory in a group of so many."""
    return _HEADER + 2 * size * MOST_STATE + 4 * MOST_ROW
