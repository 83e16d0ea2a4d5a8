"""What a connection between devices can do: measured, not looked up."""

import statistics
import time
from collections.abc import Callable

import torch

from fewer.parallel.group import Group
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
    try:
        group.use_one_shot(device)
        one_shot = median_seconds(lambda: _sum(group, numel, device), device)
    except (RuntimeError, AttributeError, ImportError) as error:
        one_shot, reason = float("inf"), str(error).splitlines()[0][:120]
    else:
        reason = f"{1e6 * one_shot:.0f} us against {1e6 * nccl:.0f} us of NCCL for {4 * numel} bytes"
    wins = all(bool(value) for value in group.gather_object(one_shot < nccl))
    if not wins:
        group.one_shot = None
    return f"small sums go {'in one shot' if wins else 'through NCCL'}: {reason}"


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
