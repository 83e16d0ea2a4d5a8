"""Pictures of 8x8 pixels in three classes that a network learns in a few steps."""

import pytest
import torch

from fewer.learn.data import LabelledImages, make_labelled_images


def bars(count: int, seed: int) -> LabelledImages:
    """A bright row at a height that tells the class, on noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 90, (count, 8, 8), generator=generator)
    for row, label in enumerate(labels.tolist()):
        images[row, 1 + 2 * label : 3 + 2 * label] += 150
    return make_labelled_images(images.to(torch.uint8), labels, ["top", "middle", "bottom"])


@pytest.fixture(scope="session")
def train() -> LabelledImages:
    return bars(90, 0)


@pytest.fixture(scope="session")
def held_out() -> LabelledImages:
    return bars(30, 1)
