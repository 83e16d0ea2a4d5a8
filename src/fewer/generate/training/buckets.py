"""Aspect buckets: pictures of like shape train together, so nothing is stretched or padded.

Every picture goes to the bucket whose aspect ratio is nearest, is resized to cover it and cropped at the
centre. A batch holds one bucket only, and an epoch holds every picture once.
"""

from collections.abc import Sequence

import torch
from PIL import Image

from fewer.core.device import seeded
from fewer.core.errors import ConfigError

Shape = tuple[int, int]
"""(height, width) in pixels."""


def bucket_shapes(side: int, multiple: int, widest: float = 4.0) -> list[Shape]:
    """Shapes of about side*side pixels, sides divisible by `multiple`, ratios from 1/widest to widest.

    For the sizes that published models have tables for, prefer `fewer.generate.sampling.bins.bin_table`.
    """
    if side < multiple or side % multiple:
        nearest = multiple * max(1, round(side / multiple))
        raise ConfigError(f"side {side} is no multiple of {multiple}; the nearest is {nearest}")
    shapes = set()
    for height in range(multiple, int(side * widest**0.5) + 1, multiple):
        width = max(multiple, round(side * side / height / multiple) * multiple)
        if 1 / widest <= height / width <= widest:
            shapes.add((height, width))
    return sorted(shapes | {(side, side)})


def nearest_shape(height: int, width: int, shapes: Sequence[Shape]) -> Shape:
    """The bucket whose aspect ratio is nearest to that of a picture, on a logarithmic scale."""
    if height < 1 or width < 1 or not shapes:
        raise ConfigError(f"a picture of {width}x{height} pixels cannot be put into {len(shapes)} buckets")
    ratio = torch.tensor([shape[0] * width / (shape[1] * height) for shape in shapes], dtype=torch.float64)
    return shapes[int(ratio.log().abs().argmin())]


def fit_to(picture: Image.Image, shape: Shape) -> Image.Image:
    """Resizes until the picture covers the bucket, then crops the centre."""
    height, width = shape
    scale = max(height / picture.height, width / picture.width)
    across, down = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    left, top = (across - width) // 2, (down - height) // 2
    resized = picture.resize((across, down), Image.Resampling.LANCZOS)
    return resized.crop((left, top, left + width, top + height))


class BucketSampler:
    """Batches of equal shape; which batch is taken at a step depends on (seed, step) alone."""

    def __init__(self, bucket_of: Sequence[Shape], batch: int, seed: int) -> None:
        if not bucket_of or batch < 1:
            raise ConfigError(
                f"{len(bucket_of)} pictures in batches of {batch}; at least 1 of each is needed"
            )
        self.batch = batch
        self.seed = seed
        self.members: dict[Shape, list[int]] = {}
        for index, shape in enumerate(bucket_of):
            self.members.setdefault(shape, []).append(index)
        self.batches_per_epoch = sum(-(-len(found) // batch) for found in self.members.values())
        self._epoch: tuple[int, list[list[int]]] | None = None

    def epoch(self, number: int) -> list[list[int]]:
        """All batches of an epoch, buckets mixed; the last batch of a bucket may be smaller."""
        generator = seeded(self.seed, number)
        batches = []
        for shape in sorted(self.members):
            found = self.members[shape]
            order = [found[place] for place in torch.randperm(len(found), generator=generator).tolist()]
            batches += [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]

    def at(self, step: int) -> list[int]:
        """The pictures of the batch at a step."""
        number, place = divmod(step, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = (number, self.epoch(number))
        return self._epoch[1][place]
