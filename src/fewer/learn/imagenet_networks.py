"""ResNet-18 and ResNet-50 for pictures of 64 pixels and more, with torchvision's tensor names, so that
weights trained on ImageNet (a file that the user has) start a run as DomainBed's protocol does.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in 0 .. 1: what such weights expect."""
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class ImageNetResNet(nn.Module):
    """He et al. 2016: 7x7 stem of stride 2 and a first pooling; `classifier` is torchvision's `fc`."""

    def __init__(self, channels: int, classes: int, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        block = Plain if depth == 18 else Bottleneck
        before, stages = 64, []
        for number, count in enumerate(BLOCKS[depth]):
            width = 64 * 2**number
            blocks = []
            for index in range(count):
                blocks.append(block(before, width, 2 if number and not index else 1))
                before = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.classifier = nn.Linear(before, classes)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        maps = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(maps)))).mean((2, 3))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(images))


class Plain(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        return F.relu(out + (maps if self.downsample is None else self.downsample(maps)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside a shortcut; the stride sits in the 3x3, as in torchvision."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(channels, 4 * width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps))))))
        return F.relu(
            self.bn3(self.conv3(out)) + (maps if self.downsample is None else self.downsample(maps))
        )


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


def load_weights(network: nn.Module, path: Path | str) -> None:
    """Takes everything but the head from a safetensors file with torchvision's names.

    Raises `FileError` for a file that lacks a tensor, has one of another shape, or is no safetensors (a
    `.pth` becomes one by `fewer convert --trust-pickle`).
    """
    path = Path(path)
    given = {name: value for name, value in read_tensors(path).items() if not name.startswith("fc.")}
    own = {name: value for name, value in network.state_dict().items() if not name.startswith("classifier.")}
    for name, value in own.items():
        if name not in given:
            if name.endswith("num_batches_tracked"):
                continue
            raise FileError(f"{path.name!r} has no tensor {name!r}: it is not of this network")
        if given[name].shape != value.shape:
            shapes = tuple(given[name].shape), tuple(value.shape)
            raise FileError(f"{path.name!r}: {name} has shape {shapes[0]}, the network needs {shapes[1]}")
    unknown = sorted(set(given) - set(own))
    if unknown:
        raise FileError(f"{path.name!r} has a tensor {unknown[0]!r} that the network does not know")
    network.load_state_dict(given, strict=False)


def freeze_norms(network: nn.Module) -> None:
    """Batch norms answer with the statistics they have and do not follow the batches; scale and shift learn
    on (DomainBed's rule). To be said again after every `network.train()`."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
