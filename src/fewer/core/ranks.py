"""Processes that work together: joining those that torchrun started, in one place for all rooms."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)


def announced_ranks() -> int:
    """How many ranks the launcher says there are; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def world_size() -> int:
    """Number of ranks that are joined; 1 without torch.distributed."""
    return distributed.get_world_size() if joined() else 1


def rank() -> int:
    """This process's rank; 0 without torch.distributed."""
    return distributed.get_rank() if joined() else 0


def joined() -> bool:
    """Whether torch.distributed is initialised in this process."""
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def ranks_of_launcher(device_type: str, timeout_seconds: float = 600.0) -> Iterator[int]:
    """Inside the block this process is joined to all that torchrun started; gives their number.

    Without torchrun, with a single process, or where the ranks are already joined, nothing happens.
    `device_type` is "cuda" (NCCL, one GPU a rank) or "cpu" (gloo).
    """
    if announced_ranks() == 1 or joined():
        yield world_size()
        return
    join_ranks(device_type, timeout_seconds)
    try:
        yield world_size()
    finally:
        distributed.destroy_process_group()


def join_ranks(
    device_type: str,
    timeout_seconds: float,
    *,
    init_method: str | None = None,
    own_rank: int | None = None,
    ranks: int | None = None,
) -> None:
    """Initialises torch.distributed; rank, count and meeting place come from the launcher if not given."""
    # A program that uses NVLink multicast can leave a shared host's GPUs unusable; nothing here needs it.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) if own_rank is None else own_rank)
    backend, timeout = "nccl" if device_type == "cuda" else "gloo", timedelta(seconds=timeout_seconds)
    if init_method is None or own_rank is None or ranks is None:
        distributed.init_process_group(backend, timeout=timeout)
    else:
        distributed.init_process_group(
            backend, init_method=init_method, rank=own_rank, world_size=ranks, timeout=timeout
        )
