"""Ranks of one process: the memories are plain ones, and all write before anybody reads."""

import pytest
import torch

from fewer.kernels.depthwise import reference_depthwise_gated
from fewer.kernels.linear_attention import reference_linear_attention
from fewer.parallel.group import Traffic
from fewer.parallel.peer_exchange import MOST_ROW, PeerExchange, room

pytest.importorskip("triton")


def exchanges(size: int) -> list[PeerExchange]:
    memories = [torch.zeros(room(size), dtype=torch.uint8) for _ in range(size)]
    addresses = [memory.data_ptr() for memory in memories]
    return [PeerExchange(memory, addresses, rank) for rank, memory in enumerate(memories)]


def test_layers_of_both_exchanges_in_turn() -> None:
    ranks, generator = exchanges(3), torch.Generator().manual_seed(0)
    weight, bias = torch.randn(10, 3, 3, generator=generator), torch.randn(10, generator=generator)
    for layer in range(3):
        turn = layer % 2
        joint = torch.randn(3, 1, 24, 2, 16, generator=generator)
        bands = [joint[:, :, 8 * rank : 8 * rank + 8] for rank in range(3)]
        for rank, (_, key, value) in zip(ranks, bands, strict=True):
            rank.share(key, value, 8, turn)
        found = torch.cat(
            [rank.read(band[0], 8, turn) for rank, band in zip(ranks, bands, strict=True)], dim=1
        )
        wanted = reference_linear_attention(*joint, 1e-15)
        assert (found - wanted).norm() < 1e-5 * wanted.norm()
        picture = torch.randn(1, 6, 3, 10, generator=generator)
        strips = picture.split(2, dim=1)
        for programs in ("senders", "readers"):
            rows = [
                rank.depthwise(strip, weight, bias, turn, programs)
                for rank, strip in zip(ranks, strips, strict=True)
            ]
        wanted = reference_depthwise_gated(picture, weight, bias, False)
        assert (torch.cat(rows, dim=1) - wanted).norm() < 1e-5 * wanted.norm()


def test_what_does_not_fit_is_said_beforehand() -> None:
    (rank,) = exchanges(1)
    assert rank.fits_state(torch.empty(2, 8, 70, 32), 8192)
    assert not rank.fits_state(torch.empty(20, 8, 70, 32), 8192)
    assert not rank.fits_state(torch.empty(1, 8, 2, 32, dtype=torch.float64), 8)
    assert rank.fits_rows(MOST_ROW // 2, torch.bfloat16)
    assert not rank.fits_rows(MOST_ROW // 2 + 1, torch.bfloat16)


def test_traffic_is_what_comes_in() -> None:
    _, middle, _ = exchanges(3)
    traffic = Traffic()
    middle.book_state(traffic, torch.empty(1, 8, 2, 16), 8)
    middle.book_rows(traffic, 100)
    assert (traffic.sums, traffic.sum_bytes) == (1, 2 * 2 * 17 * 16 * 4)
    assert (traffic.neighbours, traffic.neighbour_bytes) == (1, 200)
