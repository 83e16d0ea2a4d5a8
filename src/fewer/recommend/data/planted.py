"""Interactions with a known answer: the next item follows from the item `lag` steps back (spec section 7)."""

import torch

from fewer.core.device import seeded
from fewer.recommend.data.interactions import Interactions


def planted_lag(
    lag: int, *, items: int = 200, users: int = 1200, length: int = 24, follow: float = 0.9, seed: int = 0
) -> Interactions:
    """next = permutation(item `lag` steps back) with probability `follow`, else uniform."""
    generator = seeded(seed, 11)
    permutation = torch.randperm(items, generator=generator)
    table = torch.randint(0, items, (users, length), generator=generator)
    follows = torch.rand(users, length, generator=generator) < follow
    for step in range(lag, length):
        table[:, step] = torch.where(follows[:, step], permutation[table[:, step - lag]], table[:, step])
    owners = torch.arange(users).repeat_interleave(length)
    return Interactions.build(owners.tolist(), table.flatten().tolist())
