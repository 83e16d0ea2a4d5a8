"""Ranks that do something step by step stop at the same step, whoever of them is asked to."""

from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import torch
from torch import distributed

from fewer.parallel.group import Group

Event = TypeVar("Event")


def until_stopped(
    group: Group, events: Generator[Event, None, None], stopped: Callable[[], bool]
) -> Iterator[Event]:
    """The events; before each next one the ranks ask each other whether anybody was stopped.

    All ranks must bring the same number of events. One small sum an event.
    """
    device = torch.device("cpu")
    if distributed.is_initialized() and distributed.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    for event in events:
        yield event
        asked = torch.tensor([float(stopped())], device=device)
        if group.start_sum(asked).wait().item() > 0:
            events.close()
            return
