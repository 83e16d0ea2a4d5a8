"""Several ranks in one process: first all send their border rows, then all read."""

import pytest
import torch

from fewer.kernels.depthwise import reference_depthwise_gated

pytest.importorskip("triton")
from fewer.kernels.triton.peer_depthwise import launch_peer_depthwise

ROOM, COUNT = 8192, 4  # of a row, and where counts stand
TILE = (2, 4, 4, 64, 4, 128)  # two lines a program, so that bands have several


def convolved(
    picture: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, lengths: list[int], times: int
):
    """The bands' outputs joined; the same memories serve all `times`."""
    device, size = picture.device, len(lengths)
    memories = [torch.zeros(16 + 2 * ROOM, dtype=picture.dtype, device=device) for _ in lengths]
    peers = torch.tensor([memory.data_ptr() for memory in memories], device=device)
    reached = [torch.zeros(3, dtype=torch.int32, device=device) for _ in lengths]
    places = (16, 16 + ROOM)
    bands = picture.split(lengths, dim=1)

    def launch(rank: int, programs: str) -> torch.Tensor:
        counts = memories[rank].view(torch.int32)[COUNT : COUNT + 2]
        rows = (
            memories[rank][places[0] :] if rank > 0 else None,
            memories[rank][places[1] :] if rank < size - 1 else None,
        )
        counters = (counts, reached[rank][:2], reached[rank][2:])
        return launch_peer_depthwise(
            bands[rank], weight, bias, peers, rows, counters, rank, places, COUNT, programs, TILE
        )

    for _ in range(times):
        for rank in range(size):
            launch(rank, "senders")
        found = [launch(rank, "readers") for rank in range(size)]
    assert not any(own[2].item() for own in reached)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize(
    ("lengths", "batch", "width", "channels"),
    [([2, 3], 1, 6, 70), ([1, 1], 2, 9, 5), ([3, 6], 1, 1, 1), ([3, 1, 2], 1, 3, 5), ([2, 2, 1, 1], 1, 1, 1)],
)
def test_bands_are_the_whole_picture(lengths: list[int], batch: int, width: int, channels: int, draw) -> None:
    picture = draw(batch, sum(lengths), width, 2 * channels)
    weight, bias = draw(2 * channels, 3, 3), draw(2 * channels)
    wanted = reference_depthwise_gated(picture, weight, bias, False)
    found = convolved(
        picture, weight, bias, lengths, 1 if len(picture) > 1 else 2
    )  # counts go on from the first
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_half_precision_rows_travel_whole(draw) -> None:
    picture = draw(1, 6, 5, 12, dtype=torch.bfloat16)
    weight, bias = draw(12, 3, 3, dtype=torch.bfloat16), draw(12, dtype=torch.bfloat16)
    wanted = reference_depthwise_gated(picture, weight, bias, False)
    found = convolved(picture, weight, bias, [3, 3], 1)
    assert (found - wanted).float().norm() < 1e-2 * wanted.float().norm()
