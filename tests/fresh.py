"""Processes for tests: copies of one that has imported torch, whose import would cost each of them seconds,
and nothing of ours."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess


def fresh_processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo"])
    return context


def run_as_torchrun(
    ranks: int, main: Callable[..., object], *arguments: object, seconds: float = 200
) -> None:
    """Runs `main(*arguments)` in so many processes that find what torchrun tells each of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "1"}
    told |= {"LOCAL_WORLD_SIZE": ranks, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        fresh_processes().Process(
            target=_as_rank, args=(told | {"RANK": rank, "LOCAL_RANK": rank}, main, arguments)
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    ended = [ended_well(process, seconds) for process in processes]
    assert all(ended), [process.exitcode for process in processes]


def ended_well(process: BaseProcess, seconds: float) -> bool:
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == 0


def _as_rank(told: dict[str, object], main: Callable[..., object], arguments: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {name: str(value) for name, value in told.items()}
    main(*arguments)
