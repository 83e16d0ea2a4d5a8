import torch

from fewer.parallel.group import Group
from fewer.parallel.link import (
    measure_link,
    median_seconds,
    prefer_fast_rows,
    prefer_fast_sums,
    prefer_peer_exchange,
)
from fewer.parallel.plan import Link
from fewer.parallel.simulated import run_simulated


def test_all_ranks_hold_the_same_measurement() -> None:
    links = run_simulated(2, lambda group: measure_link(group, torch.device("cpu"), 3))
    assert isinstance(links[0], Link) and links[0] == links[1]
    assert links[0].latency_seconds > 0 and links[0].bytes_per_second > 0


def test_sums_and_rows_stay_as_they_are_without_a_gpu() -> None:
    def rank_main(group: Group) -> tuple[str, ...]:
        cpu = torch.device("cpu")
        return tuple(ask(group, cpu) for ask in (prefer_fast_sums, prefer_fast_rows, prefer_peer_exchange))

    said = (
        "sums go through torch.distributed",
        "border rows go through torch.distributed",
        "exchanges are collectives",
    )
    assert run_simulated(2, rank_main) == [said] * 2


def test_one_slow_call_does_not_move_the_median() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        if len(calls) == 4:
            sum(range(2_000_000))

    assert median_seconds(call, torch.device("cpu"), 7) < 0.005
