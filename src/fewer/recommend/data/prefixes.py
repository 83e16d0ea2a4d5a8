"""Training pairs as index slices: (history, next item) is a position, never a copied row.

A million interactions with histories of 50 would be 400 MB as a dense table; as positions they are 8 MB.
Batches gather their histories when they are needed, trimmed to the longest of the batch.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fewer.core.device import seeded
from fewer.recommend.data.splits import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Left-padded histories and their targets."""

    histories: Int[Tensor, "batch length"]
    """Item numbers, 0 on the left where a history is shorter."""
    targets: Int[Tensor, "batch"]


class Prefixes:
    """Gathers (history, target) batches of a split. `length` is the most that a model reads (m)."""

    def __init__(self, split: Split, length: int) -> None:
        self.items = torch.from_numpy(split.interactions.items)
        self.starts = torch.from_numpy(split.history_starts.astype(np.int32))
        self.length = length

    def lengths(self, positions: Int[Tensor, "batch"]) -> Int[Tensor, "batch"]:
        """How many items of history each position has, at most `length`."""
        return (positions - self.starts[positions]).clamp(max=self.length)

    def to(self, device: torch.device) -> "Prefixes":
        """The same questions with items and starts on `device`; positions have to lie there too."""
        moved = copy(self)
        moved.items, moved.starts = self.items.to(device), self.starts.to(device)
        return moved

    def whole(self) -> "Prefixes":
        """The same questions with histories that are not cut."""
        uncut = copy(self)
        uncut.length = max(len(self.items), 1)
        return uncut

    def gather(self, positions: Int[Tensor, "batch"], width: int | None = None) -> Batch:
        """Histories are cut to the longest one of the batch (at least one column), or to `width`."""
        lengths = self.lengths(positions)
        if width is None:
            width = max(int(lengths.max()), 1) if len(positions) else 1
        index = positions[:, None] - width + torch.arange(width, device=positions.device)
        inside = index >= (positions - lengths)[:, None]
        histories = self.items[index.clamp(min=0)].long() * inside
        return Batch(histories=histories, targets=self.items[positions].long())

    def in_order(self, positions: np.ndarray, size: int) -> Iterator[tuple[Tensor, Batch]]:
        """For evaluation: batches sorted by history length, with the indices into `positions`."""
        wanted = torch.from_numpy(positions.astype(np.int64))
        for chosen in torch.argsort(self.lengths(wanted), stable=True).split(size):
            yield chosen, self.gather(wanted[chosen])

    def epoch(self, positions: np.ndarray, size: int, seed: int, epoch: int) -> list[Tensor]:
        """The batches (positions) of one epoch: a pure function of (seed, epoch).

        Shuffled, then sorted by history length inside pools of 16 batches, so that rows of a batch have
        about the same length and little is computed on padding; then the batches are shuffled.
        """
        generator = seeded(seed, 1, epoch)
        shuffled = torch.from_numpy(positions.astype(np.int64))[
            torch.randperm(len(positions), generator=generator)
        ]
        batches: list[Tensor] = []
        for pool in shuffled.split(size * 16):
            batches.extend(pool[torch.argsort(self.lengths(pool), stable=True)].split(size))
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Learnable histories in windows for causal models, which learn from every position at once.

    A history longer than the model reads is cut into windows from the end, so that every target is asked once
    an epoch (taking only the last m, as SASRec's first code does, would throw the older ones away).
    """

    prefixes: Prefixes
    ends: Int[np.ndarray, "windows"]
    """Position of the last target of every window."""

    @staticmethod
    def of(split: Split, length: int) -> "Sequences":
        starts = split.interactions.offsets[:-1]
        targets = split.learnable - starts - 1
        windows = np.maximum(-(-targets // length), 0)
        within = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
        return Sequences(
            prefixes=Prefixes(split, length), ends=np.repeat(split.learnable - 1, windows) - within * length
        )

    def gather(
        self, positions: Int[Tensor, "batch"]
    ) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
        """(inputs, targets): targets are the inputs shifted by one, 0 where nothing is asked."""
        batch = self.prefixes.gather(positions)
        whole = torch.cat([batch.histories, batch.targets[:, None]], dim=1)
        inputs, targets = whole[:, :-1], whole[:, 1:]
        return inputs, targets * (inputs > 0)
