"""All pictures of all domains in one tensor on the device that trains; batches are rows of it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fewer.learn.domains.bases import DomainBatch
from fewer.learn.domains.images import Domains
from fewer.learn.few_labels.augment import shifted

Statistics = tuple[Tensor, Tensor]
"""Mean and deviation of each channel, of pixels in 0 .. 1."""


class PictureTable:
    """All pictures of all domains on one device; several runs may read it."""

    def __init__(self, domains: Domains, device: torch.device) -> None:
        counts = [len(data) for data in domains.images]
        whole = torch.cat([data.images.permute(0, 3, 1, 2) for data in domains.images])
        self.images = whole.contiguous().to(device)
        self.labels = torch.cat([data.labels for data in domains.images]).to(device)
        self.counts = counts
        self.starts = [sum(counts[:env]) for env in range(len(counts))]

    def batch(
        self,
        rows: Int64[Tensor, " batch"],
        shifts: Int64[Tensor, "batch 3"] | None,
        statistics: Statistics,
        sizes: tuple[int, ...],
    ) -> DomainBatch:
        """The pictures of `rows` (numbers in the whole table), moved and normalised; nothing waits for it."""
        pixels = self.images[rows]
        if shifts is not None:
            pixels = shifted(pixels, shifts)
        return DomainBatch(normalised(pixels, statistics), self.labels[rows], sizes)


def normalised(pixels: UInt8[Tensor, "n c h w"], statistics: Statistics) -> Float[Tensor, "n c h w"]:
    """Pixels less the mean, over the deviation, both one for each channel."""
    mean, deviation = statistics
    return (pixels.float() / 255.0 - mean[:, None, None]) / deviation[:, None, None]
