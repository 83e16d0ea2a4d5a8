"""Which rows of a stream stay in a sample of fixed size: every row draws a number, and the smallest stay.

Layers that saw batches of the same lengths keep the same rows, so one draw serves them all: with a hundred
layers the numbers would otherwise take longer than the model that is sampled.
"""

from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Lottery:
    """The numbers of the rows kept so far, the state of the dice, and how the last batch changed them."""

    def __init__(self, numbers: Float[Tensor, "limit"], dice: Tensor) -> None:
        self.numbers, self._dice = numbers, dice
        self._later: WeakValueDictionary[int, Lottery] = WeakValueDictionary()
        self.rows: Int[Tensor, new] = torch.empty(0, dtype=torch.long)
        """Rows of the last batch that stay."""
        self.places: Int[Tensor, new] = torch.empty(0, dtype=torch.long)
        """The place in the sample that each of them takes."""

    def after(self, count: int) -> "Lottery":
        """The lottery after one more batch of `count` rows; one object for all who ask while it lives."""
        known = self._later.get(count)
        if known is None:
            known = self._later[count] = self._drawn(count)
        return known

    def order(self) -> Int[Tensor, "kept"]:
        """The places that are taken, in random order."""
        return torch.argsort(self.numbers, stable=True)[: int(torch.isfinite(self.numbers).sum())]

    def _drawn(self, count: int) -> "Lottery":
        generator = torch.Generator()
        generator.set_state(self._dice)
        drawn = torch.rand(count, generator=generator)
        rows = (drawn < self.numbers.max()).nonzero()[:, 0]  # soon few beat any that is kept
        lowest, order = drawn[rows].sort(stable=True)
        highest = self.numbers.topk(min(len(rows), len(self.numbers)))
        better = lowest[: len(highest.values)] < highest.values  # one rises, the other falls: a first stretch
        numbers, new = self.numbers.clone(), int(better.sum())
        numbers[highest.indices[:new]] = lowest[:new]
        later = Lottery(numbers, generator.get_state())
        later.rows, later.places = rows[order[:new]], highest.indices[:new]
        return later


def lottery(limit: int, generator: torch.Generator) -> Lottery:
    """Before the first row: `limit` free places."""
    return Lottery(torch.full((limit,), torch.inf), generator.get_state())
