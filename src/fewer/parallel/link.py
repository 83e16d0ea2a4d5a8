"""What a connection between devices can do: measured, not looked up."""

import statistics
import time
from collections.abc import Callable

import torch

from fewer.parallel.exchange_trial import ExchangeTrial
from fewer.parallel.group import Group, Neighbours
from fewer.parallel.plan import Link
from fewer.parallel.process_group import ProcessGroup


def measure_link(group: Group, device: torch.device, repeats: int = 10) -> Link:
    """Seconds of one small sum, and received bytes a second of a large one: medians, equal on every rank."""
    small, numel = median_seconds(lambda: _sum(group, 256, device), device, repeats), 4 * 2**20
    large = median_seconds(lambda: _sum(group, numel, device), device, repeats)
    received = 2 * (group.size - 1) / group.size * numel * 4
    own = (small, received / max(large - small, 1e-9))
    everyone: list[tuple[float, float]] = group.gather_object(own)  # pyright: ignore[reportAssignmentType]
    latency = max(latency for latency, _ in everyone)
    return Link(latency_seconds=latency, bytes_per_second=min(rate for _, rate in everyone))


def prefer_fast_sums(group: Group, device: torch.device, numel: int = 70 * 32 * 33) -> str:
    """Lets the group sum small tensors in one shot where that is faster than NCCL; says what it found.

    All ranks must call it. Nothing changes on a CPU, in a simulated group, or without symmetric memory.
    """
    if device.type != "cuda" or not isinstance(group, ProcessGroup) or group.size == 1:
        return "sums go through torch.distributed"
    nccl = median_seconds(lambda: _sum(group, numel, device), device)
    missing = _missing(group, lambda: group.use_one_shot(device))
    if missing:
        group.one_shot = None
        return f"small sums go through NCCL: {missing}"
    one_shot = median_seconds(lambda: _sum(group, numel, device), device)
    wins = all(bool(value) for value in group.gather_object(one_shot < nccl))
    if not wins:
        group.one_shot = None
    reason = f"{1e6 * one_shot:.0f} us against {1e6 * nccl:.0f} us of NCCL for {4 * numel} bytes"
    return f"small sums go {'in one shot' if wins else 'through NCCL'}: {reason}"


def prefer_fast_rows(group: Group, device: torch.device, numel: int = 32 * 11200) -> str:
    """Lets neighbours read border rows where they lie, if that gives the same ones sooner; says why.

    All ranks must call it. Nothing changes on a CPU, in a simulated group, or without symmetric memory.
    """
    if device.type != "cuda" or not isinstance(group, ProcessGroup) or group.size == 1:
        return "border rows go through torch.distributed"
    first, last = (torch.arange(numel, device=device) % 251 + 2 * group.rank + side for side in (0, 1))
    first, last = first.bfloat16(), last.bfloat16()

    def exchange() -> Neighbours:
        return group.start_neighbours(first, last).wait()

    expected = exchange()
    sent = median_seconds(exchange, device)
    missing = _missing(group, lambda: group.use_peer_rows(device))
    if missing:
        group.peer_rows = None
        return f"border rows are sent: {missing}"
    compared = [_same(exchange(), expected) for _ in range(3)]  # as often on every rank, whatever comes out
    equal = all(compared)
    read = median_seconds(exchange, device)
    wins = all(bool(value) for value in group.gather_object(equal and read < sent))
    if not wins:
        group.peer_rows = None
    reason = f"{1e6 * read:.0f} us against {1e6 * sent:.0f} us for {2 * numel} bytes, equal: {equal}"
    return f"border rows {'are read where they lie' if wins else 'are sent'}: {reason}"


def prefer_peer_exchange(
    group: Group, device: torch.device, heads: int = 70, dim: int = 32, wide: int = 11200
) -> str:
    """Lets blocks of the engine's Sana exchange inside their own kernels, if that gives the same; says why.

    All ranks must call it. Nothing changes on a CPU, in a simulated group, or without symmetric memory.
    Raises `GroupFailed` if the kernels don't end: a GPU that waits in vain can only be left.
    """
    if device.type != "cuda" or not isinstance(group, ProcessGroup) or group.size == 1:
        return "exchanges are collectives"
    met = group.peer_exchange is not None  # of a model before; alike on all ranks
    missing = "" if met else _missing(group, lambda: group.use_peer_exchange(device))
    exchange = group.peer_exchange
    if missing or exchange is None:
        group.peer_exchange = None
        return f"exchanges are collectives: {missing}"
    trial = ExchangeTrial(group, device, heads, dim, wide)
    errors = [trial.error(exchange, turn) for turn in (0, 1, 0, 1)]
    equal = all(bool(value) for value in group.gather_object(max(errors) < 0.01))
    inside, outside = trial.seconds(exchange), trial.seconds(None)
    group.gather_object(None)
    if not equal:
        group.peer_exchange = None
    reason = f"{1e6 * inside:.0f} us a layer against {1e6 * outside:.0f} us, error {max(errors):.1e}"
    return f"exchanges happen {'inside kernels' if equal else 'as collectives'}: {reason}"


def _missing(group: Group, prepare: Callable[[], None]) -> str:
    """Why some rank lacks symmetric memory; empty if none does. Asked before anybody waits for the others."""
    try:
        prepare()
    except (RuntimeError, AttributeError, ImportError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    else:
        reason = ""
    return next((str(value) for value in group.gather_object(reason) if value), "")


def _same(found: Neighbours, expected: Neighbours) -> bool:
    return all(
        one is other if one is None or other is None else torch.equal(one, other)
        for one, other in zip(found, expected, strict=True)
    )


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """Of one call, with everything it started; a GPU does many in a row, as a step would."""
    each = 10 if device.type == "cuda" else 1
    times = []
    for _ in range(repeats + 2):
        _wait(device)
        began = time.perf_counter()
        for _ in range(each):
            call()
        _wait(device)
        times.append((time.perf_counter() - began) / each)
    return statistics.median(times[2:])


def _sum(group: Group, numel: int, device: torch.device) -> None:
    group.start_sum(torch.zeros(numel, device=device)).wait()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
