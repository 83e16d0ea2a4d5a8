"""Several ranks in one process: each has a memory of its own, and all write before anybody reads."""

import pytest
import torch

from fewer.kernels.linear_attention import reference_linear_attention

pytest.importorskip("triton")
from fewer.kernels.triton import peer_state
from fewer.kernels.triton.peer_state import launch_shared_state, launch_waiting_apply, parts_of

PLACES, COUNTS = 64, 0  # counts at the beginning of a memory, states behind them


class Ranks:
    """Memories of so many ranks, their addresses, and how far each has counted."""

    def __init__(self, size: int, numbers: int, device: torch.device) -> None:
        self.memories = [torch.zeros(PLACES + numbers, device=device) for _ in range(size)]
        self.peers = torch.tensor([memory.data_ptr() for memory in self.memories], device=device)
        self.goals = [torch.zeros(PLACES, dtype=torch.int32, device=device) for _ in range(size)]

    def attend(self, query, key, value, lengths: list[int]) -> list[torch.Tensor]:
        longest, (batch, _, heads, dim) = max(lengths), query.shape
        parts = list(zip(*(tensor.split(lengths, dim=1) for tensor in (query, key, value)), strict=True))
        for rank, (_, k, v) in enumerate(parts):
            launch_shared_state(k, v, self.peers, self.goals[rank], rank, PLACES, COUNTS, longest)
        shape = (len(lengths) * parts_of(longest), batch, heads, dim + 1, dim)
        results = []
        for rank, (q, _, _) in enumerate(parts):
            states = self.memories[rank][PLACES:][: torch.Size(shape).numel()].view(shape)
            counts = self.memories[rank][:PLACES].view(torch.int32)
            results.append(launch_waiting_apply(q, states, counts, self.goals[rank], 1e-15))
        return results


@pytest.mark.parametrize("lengths", [[3, 2], [1, 2, 2, 1], [300, 290]])
@pytest.mark.parametrize("heads", [1, 3])
def test_every_rank_reads_the_sum_of_all(lengths: list[int], heads: int, draw, device: torch.device) -> None:
    ranks = Ranks(len(lengths), 200_000, device)
    for _ in range(2):  # the second exchange counts on
        query, key, value = (draw(2, sum(lengths), heads, 16) for _ in range(3))
        found = torch.cat(ranks.attend(query, key, value, lengths), dim=1)
        wanted = reference_linear_attention(query, key, value, 1e-15)
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_large_bands_are_summed_before_they_are_shared(draw, device: torch.device, monkeypatch) -> None:
    monkeypatch.setattr(peer_state, "MOST_TOKENS_UNSUMMED", 8)
    ranks = Ranks(2, 40_000, device)
    for _ in range(2):
        query, key, value = (draw(1, 300 + 270, 3, 16) for _ in range(3))
        found = torch.cat(ranks.attend(query, key, value, [300, 270]), dim=1)
        wanted = reference_linear_attention(query, key, value, 1e-15)
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_all_ranks_hold_the_same_bits(draw, device: torch.device) -> None:
    ranks = Ranks(3, 40_000, device)
    ranks.attend(*(draw(1, 30, 2, 32) for _ in range(3)), [10, 10, 10])
    first, *others = (memory[PLACES:] for memory in ranks.memories)
    assert first.any()
    assert all(torch.equal(first, other) for other in others)


def test_counts_are_those_of_the_others(draw, device: torch.device) -> None:
    ranks = Ranks(4, 40_000, device)
    ranks.attend(*(draw(1, 16, 2, 16) for _ in range(3)), [4, 4, 4, 4])
    for memory, goals in zip(ranks.memories, ranks.goals, strict=True):
        assert torch.equal(memory[:PLACES].view(torch.int32), goals)
        assert goals[0] == 3
