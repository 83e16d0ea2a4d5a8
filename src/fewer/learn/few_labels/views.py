"""The views of one step, made on the device that trains: drawn on the CPU, so that one seed gives one
augmentation everywhere; on a GPU applied by one recorded graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fewer.learn.few_labels.augment import cut, draw_boxes, draw_shifts, shifted, strong_view, weak_view
from fewer.learn.few_labels.randaugment import (
    Pictures,
    apply_everywhere,
    draw_operations,
    picked_places,
)
from fewer.learn.graphed import GraphedFunction

ROUNDS = 3


class StepViews(NamedTuple):
    """Normalised views of the labelled and the unlabelled pictures of a step."""

    labelled: Float[Tensor, "labelled channels height width"]
    weak: Float[Tensor, "unlabelled channels height width"]
    strong: Float[Tensor, "unlabelled channels height width"]
    again: Float[Tensor, "others channels height width"] | None
    """Further weak views of the unlabelled pictures, one whole round after the other."""


@dataclass(slots=True)
class Views:
    """`views(labelled_rows, unlabelled_rows, generator)` for the pictures of a run."""

    images: Pictures
    """On the device that trains."""
    mean: Float[Tensor, " channels"]
    deviation: Float[Tensor, " channels"]
    flip: bool
    pool: tuple[str, ...]
    """RandAugment's operations."""
    strong: bool = True
    """Whether the method looks at strong views; they are the weak ones otherwise."""
    again: int = 0
    """At how many further weak views it looks."""
    graphed: GraphedFunction = field(init=False)

    def __post_init__(self) -> None:
        device = self.images.device
        self.mean, self.deviation = (x.to(device)[:, None, None] for x in (self.mean, self.deviation))
        self.graphed = GraphedFunction(self.from_tables, device=device)

    def __call__(
        self, labelled: Int64[Tensor, " b"], unlabelled: Int64[Tensor, " u"], generator: torch.Generator
    ) -> StepViews:
        """Rows are CPU tensors; so is the generator. A call's views are overwritten by the next (GPU)."""
        if self.images.is_cuda:
            return StepViews(*self.graphed(*self.tables(labelled, unlabelled, generator)))
        images, flip = self.images[unlabelled], self.flip
        weak = weak_view(images, generator, flip=flip)
        strong = weak
        if self.strong:
            # The strong view starts from a weak view of its own, as in the field's code.
            strong = strong_view(weak_view(images, generator, flip=flip), generator, self.pool)
        again = [weak_view(images, generator, flip=flip) for _ in range(self.again)]
        known = weak_view(self.images[labelled], generator, flip=flip)
        made = [self.normalise(view) for view in (known, weak, strong)]
        return StepViews(*made, self.normalise(torch.cat(again)) if again else None)

    def tables(
        self, labelled: Int64[Tensor, " b"], unlabelled: Int64[Tensor, " u"], generator: torch.Generator
    ) -> tuple[Float64[Tensor, "b four"], Float64[Tensor, "u columns"]]:
        """Everything that is drawn for a step, a row for each picture, in the order of `__call__`."""
        count, size = len(unlabelled), (self.images.shape[2], self.images.shape[3])
        columns = [unlabelled[:, None], draw_shifts(count, *size, generator, flip=self.flip)]
        if self.strong:
            columns.append(draw_shifts(count, *size, generator, flip=self.flip))
            picks, shares = draw_operations(count, generator, len(self.pool), ROUNDS)
            places = picked_places(picks.flatten(), shares.flatten(), self.pool, size).split(count)
            for pick, share, place in zip(picks, shares, places, strict=True):
                columns += [pick[:, None], share[:, None], place]
            columns.append(draw_boxes(count, *size, generator))
        for _ in range(self.again):
            columns.append(draw_shifts(count, *size, generator, flip=self.flip))
        known = draw_shifts(len(labelled), *size, generator, flip=self.flip)
        rows = torch.cat([labelled[:, None], known], 1).double()
        # Whole numbers below 2^53 and float32 values go through float64 unchanged: one copy a step.
        return rows, torch.cat([column.double() for column in columns], 1)

    def from_tables(
        self, labelled: Float64[Tensor, "b four"], unlabelled: Float64[Tensor, "u columns"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The views that the tables describe; made of operations that do not depend on their values."""
        labelled, unlabelled = labelled.to(self.images.device), unlabelled.to(self.images.device)
        known = self.normalise(
            shifted(self.images.index_select(0, labelled[:, 0].long()), labelled[:, 1:].long())
        )
        images = self.images.index_select(0, unlabelled[:, 0].long())
        weak = self.normalise(shifted(images, unlabelled[:, 1:4].long()))
        strong, at = weak, 4
        if self.strong:
            views = shifted(images, unlabelled[:, 4:7].long())
            for start in range(7, 7 + 8 * ROUNDS, 8):
                picks, shares = unlabelled[:, start].long(), unlabelled[:, start + 1]
                places = unlabelled[:, start + 2 : start + 8].long()
                views = apply_everywhere(views, picks, shares, places, self.pool)
            at = 7 + 8 * ROUNDS
            strong = self.normalise(cut(views, unlabelled[:, at : at + 3].float()))
            at += 3
        starts = range(at, at + 3 * self.again, 3)
        again = [shifted(images, unlabelled[:, start : start + 3].long()) for start in starts]
        return known, weak, strong, self.normalise(torch.cat(again)) if again else None

    def normalise(self, images: Pictures) -> Float[Tensor, "n channels height width"]:
        """Pixels as the network sees them, channels last on a GPU."""
        pixels = (images.float() / 255.0 - self.mean) / self.deviation
        return pixels.contiguous(memory_format=torch.channels_last) if images.is_cuda else pixels
