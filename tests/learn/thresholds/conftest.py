"""A linear classifier on pictures of 4 pixels, whose answers a test can set."""

import pytest
import torch
from torch import nn

from fewer.learn.thresholds.batch import Batch


class Answers(nn.Module):
    """Logits = the first `classes` pixels times `sharpness`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.sharpness = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, : self.classes] * self.sharpness


def pictures(logits: torch.Tensor) -> torch.Tensor:
    """Pictures that make `Answers` give these logits."""
    return nn.functional.pad(logits, (0, 4 - logits.shape[1])).reshape(-1, 1, 2, 2)


@pytest.fixture
def network() -> Answers:
    return Answers(3)


@pytest.fixture
def batch() -> Batch:
    """Pseudo-labels 0, 1, 2, 0 with confidence about 0.999, 0.96, 0.85 and 0.5."""
    p = torch.tensor([[0.999, 0.0005, 0.0005], [0.02, 0.96, 0.02], [0.1, 0.05, 0.85], [0.5, 0.3, 0.2]])
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(4, 3, generator=generator)
    return Batch(
        labelled=pictures(torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])),
        labels=torch.tensor([0, 1, 2]),
        weak=pictures(p.log()),
        strong=pictures(strong),
        again=pictures(p.log() + 0.1),
        rows=torch.tensor([5, 2, 0, 7]),
        progress=0.5,
        generator=generator,
    )
