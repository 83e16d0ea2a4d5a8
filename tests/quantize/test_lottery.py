import torch

from fewer.quantize.lottery import lottery


def kept(limit: int, batches: list[int], seed: int) -> set[int]:
    """The rows of the whole stream that stay, followed through their places."""
    places, begin = torch.full((limit,), -1), 0
    state = lottery(limit, torch.Generator().manual_seed(seed))
    for count in batches:
        state = state.after(count)
        places[state.places] = begin + state.rows
        begin += count
    chosen = places[state.order()].tolist()
    assert len(set(chosen)) == min(limit, begin) and min(chosen) >= 0
    return set(chosen)


def test_the_rows_with_the_smallest_numbers_of_the_whole_stream_stay() -> None:
    for limit, batches in ((7, [5, 1, 30, 123]), (200, [5, 60]), (1, [1, 1, 1]), (10, [10, 10])):
        generator = torch.Generator().manual_seed(3)
        numbers = torch.cat([torch.rand(count, generator=generator) for count in batches])
        assert kept(limit, batches, 3) == set(numbers.argsort()[:limit].tolist())


def test_streams_of_equal_lengths_share_one_draw_and_a_forgotten_one_comes_out_the_same() -> None:
    start = lottery(9, torch.Generator().manual_seed(0))
    first = start.after(20)
    assert start.after(20) is first and start.after(21) is not first
    rows, places = first.rows.clone(), first.places.clone()
    del first
    again = start.after(20)
    assert torch.equal(again.rows, rows) and torch.equal(again.places, places)
