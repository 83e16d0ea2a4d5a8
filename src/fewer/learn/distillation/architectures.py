"""The networks of the field: ConvNet-3, on which sets are distilled, and the five others that must learn
from them.

Every network is a `Classifier`: a body that embeds pictures and one linear head, because distribution
matching needs the embedding and gradient matching the whole. Sources: specs of DC (Zhao et al. 2021) §4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.learn.networks import MLP, ConvNet

NetworkName = Literal["convnet", "mlp", "lenet", "alexnet", "vgg11", "resnet18"]
NormName = Literal["instance", "batch", "layer", "group", "none"]
NETWORK_POOL: tuple[NetworkName, ...] = ("convnet", "mlp", "lenet", "alexnet", "vgg11", "resnet18")
PUBLISHED_WIDTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """Which network; the defaults are those of the published comparisons."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: NetworkName = "convnet"
    width: Annotated[int, Field(ge=4, le=1024)] = PUBLISHED_WIDTH
    """Channels of the ConvNet; the other networks are scaled by width / 128."""
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    """Blocks of the ConvNet; None: 3 up to 32 pixels, then 4, 5, 6 at 64, 128, 224."""
    norm: NormName = "instance"
    activation: Literal["relu", "leaky", "sigmoid"] = "relu"
    pooling: Literal["average", "max", "none"] = "average"


class Classifier(nn.Module):
    """`head(body(images))`: logits (batch, classes) from normalised images (batch, channels, height,
    width).
    """

    def __init__(self, body: nn.Module, channels: int, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.body = body.eval()
        with torch.no_grad():
            features = self.body(torch.zeros(2, channels, *size)).shape[1]
        self.body.train()
        self.head = nn.Linear(features, classes)
        self.features = features

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.body(images))


def refuse_batch_norm(plan: NetworkPlan) -> None:
    """Raises `ConfigError`: networks that are functions of their parameters have no running statistics."""
    if plan.norm == "batch":
        raise ConfigError(
            "norm was 'batch', whose running statistics are no parameters; allowed here: instance, layer, "
            "group, none (sre2l trains a teacher with batch norm by itself)"
        )


def build_network(plan: NetworkPlan, channels: int, size: tuple[int, int], classes: int) -> Classifier:
    """A freshly made network for pictures of `size` (height, width); its weights come from torch's
    generator.
    """
    return Classifier(_body(plan, channels, size), channels, size, classes)


def _body(plan: NetworkPlan, channels: int, size: tuple[int, int]) -> nn.Module:
    scale = plan.width / PUBLISHED_WIDTH
    if plan.name == "convnet":
        return _convnet(plan, channels, size)
    if plan.name == "mlp":
        return nn.Sequential(nn.Flatten(), *MLP(channels, 2, size, plan.width).hidden)
    if plan.name == "lenet":
        return _lenet(channels, size)
    if plan.name == "alexnet":
        steps = (
            ("conv5", 128),
            "pool",
            ("conv5", 192),
            "pool",
            ("conv3", 256),
            ("conv3", 192),
            ("conv3", 192),
        )
        return _chain((*steps, "pool"), plan.norm, channels, size, scale)
    if plan.name == "vgg11":
        steps = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
        return _chain(
            [step if step == "pool" else ("conv3", step) for step in steps], plan.norm, channels, size, scale
        )
    return _resnet18(plan.norm, channels, size, scale)


def _convnet(plan: NetworkPlan, channels: int, size: tuple[int, int]) -> nn.Sequential:
    longest = max(size)
    depth = plan.depth or (3 if longest < 64 else 4 if longest < 128 else 5 if longest < 224 else 6)
    network = ConvNet(
        channels, 2, size, plan.width, depth, norm=plan.norm, activation=plan.activation, pooling=plan.pooling
    )
    return nn.Sequential(*network.blocks, nn.Flatten())


def _norm(name: NormName, channels: int) -> list[nn.Module]:
    if name == "none":
        return []
    if name == "batch":
        return [nn.BatchNorm2d(channels)]
    groups = {"instance": channels, "layer": 1, "group": 4 if channels % 4 == 0 else 1}[name]
    return [nn.GroupNorm(groups, channels)]


def _lenet(channels: int, size: tuple[int, int]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    padding = 0 if min(size) >= 16 else 2
    layers += [nn.Conv2d(6, 16, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    with torch.no_grad():
        flat = nn.Sequential(*layers)(torch.zeros(1, channels, *size)).shape[1]
    return nn.Sequential(*layers, nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())


def _chain(
    steps: Sequence[str | tuple[str, int]],
    norm: NormName,
    channels: int,
    size: tuple[int, int],
    scale: float,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    side = min(size)
    for step in steps:
        if isinstance(step, str):
            if side >= 4:  # an instance norm needs more than one pixel
                layers.append(nn.MaxPool2d(2))
                side //= 2
            continue
        kernel = 5 if step[0] == "conv5" else 3
        width = max(8, round(step[1] * scale))
        layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), *_norm(norm, width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten())


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, norm: NormName) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), *_norm(norm, width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), *_norm(norm, width),
        )  # fmt: skip
        same = stride == 1 and channels == width
        shortcut = [nn.Conv2d(channels, width, 1, stride, bias=False), *_norm(norm, width)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*shortcut)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.branch(images) + self.shortcut(images))


def _resnet18(norm: NormName, channels: int, size: tuple[int, int], scale: float) -> nn.Sequential:
    widths = [max(8, round(width * scale)) for width in (64, 128, 256, 512)]
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), *_norm(norm, widths[0])]
    layers.append(nn.ReLU())
    width, side = widths[0], min(size)
    for stage, wanted in enumerate(widths):
        stride = 2 if stage > 0 and side >= 4 else 1
        side = (side + stride - 1) // stride
        layers += [_ResidualBlock(width, wanted, stride, norm), _ResidualBlock(wanted, wanted, 1, norm)]
        width = wanted
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
