"""Tiny domains that a network learns in a few steps."""

import pytest
import torch
from torch import Tensor, nn

from fewer.core.device import isolated_randomness
from fewer.learn.data import make_labelled_images
from fewer.learn.domains.bases import DomainBatch
from fewer.learn.domains.images import Domains


class TwoLayers(nn.Module):
    """4 inputs -> 3 hidden -> 2 classes."""

    def __init__(self, inputs: int = 4, hidden: int = 3) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.classifier = nn.Linear(hidden, 2)

    def features(self, inputs: Tensor) -> Tensor:
        return self.hidden(inputs).relu()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.features(inputs))


def two_layers(seed: int = 0, inputs: int = 4, hidden: int = 3) -> TwoLayers:
    with isolated_randomness(seed):
        return TwoLayers(inputs, hidden)


def vectors(seed: int, each: int = 8, envs: int = 2, inputs: int = 4) -> DomainBatch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (each * envs,), generator=generator)
    shift = torch.arange(envs).repeat_interleave(each)
    images = torch.randn(each * envs, inputs, generator=generator)
    images[:, 0] += 2 * labels - 1
    images[:, 1] += shift
    return DomainBatch(images, labels, (each,) * envs)


def bars(seed: int, names: tuple[str, ...] = ("a", "b", "c"), count: int = 30) -> Domains:
    """A bright row tells the class, the background the domain; 8x8 pixels."""
    sets = []
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(100 * seed + number)
        labels = torch.arange(count) % 2
        images = torch.randint(0, 60, (count, 8, 8), generator=generator) + 20 * number
        for row, label in enumerate(labels.tolist()):
            images[row, 1 + 4 * label : 3 + 4 * label] += 120
        sets.append(make_labelled_images(images.to(torch.uint8), labels, ["top", "bottom"], name))
    return Domains(names, tuple(sets))


@pytest.fixture(scope="session")
def domains() -> Domains:
    return bars(0)


@pytest.fixture(scope="session")
def four_domains() -> Domains:
    return bars(1, ("a", "b", "c", "d"))


class Toy:
    """Makers of a two-layer network and of batches of vectors."""

    network = staticmethod(two_layers)
    batch = staticmethod(vectors)


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    return Toy
