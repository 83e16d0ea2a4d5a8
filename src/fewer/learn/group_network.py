"""The small network of the domain-generalisation field: four 3x3 convolutions, each followed by ReLU and
group normalisation, then the mean over the picture (DomainBed's MNIST network)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class GroupCNN(nn.Module):
    """Widths 32, 64, 128, 128 by default (DomainBed's are 64, 128, 128, 128); the second and third
    convolution halve the picture. Group normalisation keeps no running statistics of the sources."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, int, int, int] = (32, 64, 128, 128)):
        super().__init__()
        layers: list[nn.Module] = []
        for width, stride in zip(widths, (1, 2, 2, 1), strict=True):
            layers += [
                nn.Conv2d(channels, width, 3, stride, padding=1),
                nn.ReLU(),
                nn.GroupNorm(min(8, width), width),
            ]
            channels = width
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        return self.blocks(images).mean((2, 3))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(images))
