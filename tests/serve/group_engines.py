"""A stand-in for a model that several ranks draw together: importable by workers and by their ranks."""

import os
from collections.abc import Iterator, Sequence

import torch

from fewer.core.errors import CapacityError
from fewer.parallel.group import Group
from fewer.serve.engine import ImageEvent, StepEvent
from fewer.serve.group_engine import GroupEngine
from tests.serve.engines import Quick


def grouped(options: dict) -> GroupEngine:
    return GroupEngine({**options, "device": "cpu"}, inner="tests.serve.group_engines:quick_rank")


def quick_rank(options: dict, group: Group) -> "QuickRank":
    return QuickRank(options, group)


class QuickRank:
    """Every step is a sum over all ranks. Words in the prompt let rank 1 lack room, or die."""

    def __init__(self, options: dict, group: Group) -> None:
        self.quick, self.group = Quick(options), group

    def admit(self, requests: Sequence[dict]) -> None:
        if self.group.rank == 1 and "too big" in requests[0]["generate"]["prompt"][0]:
            raise CapacityError("needs about 23 GB, 14 GB free; try size 1024")

    def run_together(self, requests: Sequence[dict]) -> Iterator[tuple[int, StepEvent | ImageEvent | None]]:
        if "die" in requests[0]["generate"]["prompt"][0] and self.group.rank == 1:
            os.kill(os.getpid(), 9)
        for event in self.quick.run(requests[0]):
            assert self.group.start_sum(torch.ones(1)).wait().item() == self.group.size
            yield 0, event
        yield 0, None
