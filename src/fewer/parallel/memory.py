"""What a band takes is said before it is taken, to every rank: one that fails alone keeps all waiting."""

import torch

from fewer.core.device import available_memory, require_memory
from fewer.core.errors import CapacityError
from fewer.generate.memory import activation_bytes
from fewer.generate.transformer.params import SanaParams
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan


def band_bytes(
    params: SanaParams, plan: ParallelPlan, grid: tuple[int, int], samples: int, itemsize: int
) -> int:
    """Of one step's activations on the largest band; `grid` is its (longest cut side, other side) in tokens.

    Displaced mode also keeps every layer's state and border rows of the step before: the sum, the own part.
    """
    along, across = grid
    tokens = (along + 2) * across  # border rows of both neighbours are widened too
    needed = activation_bytes(params, tokens, samples, itemsize)
    if plan.mode == "displaced":
        state = params.heads * params.head_dim * (params.head_dim + 1) * 4
        needed += params.depth * samples * (2 * state + 4 * across * params.width * itemsize)
    return needed


def require_on_every_rank(group: Group, needed: int, device: torch.device, what: str) -> None:
    """Raises `CapacityError` on all ranks, naming the first that lacks room. All ranks must call it.

    Ranks without GPUs of their own share one machine's memory: there all that is asked for must fit together.
    """
    advice = f"{what}; try a smaller size, fewer pictures at once, or more devices"
    if group.size == 1:
        require_memory(needed, device, advice)
        return
    everyone: list[tuple[int, int]] = group.gather_object((needed, available_memory(device)))  # pyright: ignore
    shared = device.type != "cuda"
    for rank, (own, free) in enumerate(everyone):
        asked = sum(each for each, _ in everyone) if shared else own
        if asked > free:
            who = f"the {group.size} ranks" if shared else f"rank {rank} of {group.size}"
            raise CapacityError(
                f"{who} would take about {asked / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free: {advice}"
            )
