"""The group that a process belongs to when nobody names one."""

import torch

from fewer.core.errors import ConfigError
from fewer.core.ranks import join_ranks, joined, under_torchrun
from fewer.parallel.group import Group
from fewer.parallel.process_group import ProcessGroup
from fewer.parallel.simulated import lone_rank


def own_group(devices: int, timeout_seconds: float = 600.0) -> Group:
    """All ranks of torch.distributed, joined first under torchrun; for a process alone, a group of one.

    Raises `ConfigError` if `devices` are asked for in a process that has no others beside it.
    """
    if under_torchrun() and not joined():
        join_ranks("cuda" if torch.cuda.is_available() else "cpu", timeout_seconds)
    if joined():
        return ProcessGroup()
    if devices == 1:
        return lone_rank()
    raise ConfigError(
        f"the plan is for {devices} devices, but this process is alone; start it with "
        f"torchrun --nproc-per-node {devices}, or call it through run_on_devices(rank_main, {devices})"
    )
