"""Classifiers for small pictures. Each has `features(images) -> (batch, dim)`, a linear `classifier`, and
`forward = classifier(features)`. Images are (batch, channels, height, width), already normalised.

`NetworkPlan` says which one, in a form that a model folder can store; `build_network` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from fewer.core.device import isolated_randomness
from fewer.core.errors import ConfigError
from fewer.learn.group_network import GroupCNN
from fewer.learn.imagenet_networks import ImageNetResNet
from fewer.learn.residual_networks import ResNet18, WideResNet

NetworkName = Literal[
    "small-cnn",
    "convnet-3",
    "wrn-28-2",
    "wrn-28-8",
    "resnet-18",
    "resnet-18-imagenet",
    "resnet-50-imagenet",
    "mlp",
    "group-cnn",
    "vit",
]
Norm = Literal["instance", "batch", "layer", "group", "none"]
Activation = Literal["relu", "leaky", "sigmoid"]
Pooling = Literal["average", "max", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """A network and the pictures it is for."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    name: NetworkName = "small-cnn"
    channels: Annotated[int, Field(ge=1, le=3)] = 1
    classes: Annotated[int, Field(ge=2, le=100_000)] = 10
    height: Annotated[int, Field(ge=4, le=1024)] = 28
    width: Annotated[int, Field(ge=4, le=1024)] = 28


def build_network(plan: NetworkPlan, seed: int = 0, folder: str | None = None) -> nn.Module:
    """The network with weights drawn from `seed`; the caller's global random state is left alone.

    `vit` is read from `folder` (config.json and model.safetensors of transformers' ViT), never downloaded.
    Raises `ConfigError` for an unknown name or pictures too small for the network.
    """
    size = (plan.height, plan.width)
    with isolated_randomness(seed):
        match plan.name:
            case "small-cnn":
                return SmallCNN(plan.channels, plan.classes)
            case "convnet-3":
                return ConvNet(plan.channels, plan.classes, size)
            case "wrn-28-2":
                return WideResNet(plan.channels, plan.classes, widen=2)
            case "wrn-28-8":
                return WideResNet(plan.channels, plan.classes, widen=8)
            case "resnet-18":
                return ResNet18(plan.channels, plan.classes, stem_stride=2 if min(size) >= 64 else 1)
            case "resnet-18-imagenet" | "resnet-50-imagenet":
                return ImageNetResNet(plan.channels, plan.classes, int(plan.name.split("-")[1]))
            case "mlp":
                return MLP(plan.channels, plan.classes, size)
            case "group-cnn":
                return GroupCNN(plan.channels, plan.classes)
            case "vit":
                from fewer.learn.vision_transformer import load_vision_transformer

                return load_vision_transformer(plan, folder)
    raise ConfigError(f"network {plan.name!r} is not known; allowed: {', '.join(get_args(NetworkName))}")


class ConvNet(nn.Module):
    """The network of the dataset-distillation field (DC, section 4): `depth` blocks of 3x3 convolution,
    normalisation, activation, 2x2 pooling; then one linear layer. "ConvNet-3" is depth 3, width 128."""

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        width: int = 128,
        depth: int = 3,
        *,
        norm: Norm = "instance",
        activation: Activation = "relu",
        pooling: Pooling = "average",
    ) -> None:
        super().__init__()
        height, wide = size
        layers: list[nn.Module] = []
        for block in range(depth):
            # A grey picture of 28 pixels becomes 32 by the wider border, as in the field's code.
            padding = 3 if block == 0 and channels == 1 else 1
            height, wide = height + 2 * padding - 2, wide + 2 * padding - 2
            layers.append(nn.Conv2d(channels, width, 3, padding=padding))
            layers += _normalisation(norm, width, (height, wide))
            layers.append(_activation(activation))
            if pooling != "none":
                layers.append(nn.AvgPool2d(2) if pooling == "average" else nn.MaxPool2d(2))
                height, wide = height // 2, wide // 2
            channels = width
            if min(height, wide) < 1:
                raise ConfigError(
                    f"pictures of {size[0]}x{size[1]} are too small for a ConvNet of depth {depth}"
                )
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * height * wide, classes)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        return self.blocks(images).flatten(1)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(images))


class SmallCNN(nn.Module):
    """Three convolutions (32, 64, 128 channels; the first two halve the picture) with batch norm, then the
    mean over the picture: about 95,000 parameters, made for training on a CPU."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for out, kernel, stride in ((width, 5, 2), (2 * width, 3, 2), (4 * width, 3, 1)):
            layers += [
                nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.LeakyReLU(0.1, inplace=True),
            ]
            channels = out
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        return self.blocks(images).mean((2, 3))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(images))


class MLP(nn.Module):
    """Three linear layers of width 128, the field's smallest cross-architecture check."""

    def __init__(self, channels: int, classes: int, size: tuple[int, int], width: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(channels * size[0] * size[1], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.classifier = nn.Linear(width, classes)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        return self.hidden(images.flatten(1))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(images))


def _normalisation(norm: Norm, width: int, size: tuple[int, int]) -> list[nn.Module]:
    match norm:
        case "instance":
            return [nn.GroupNorm(width, width, affine=True)]
        case "group":
            return [nn.GroupNorm(min(4, width), width, affine=True)]
        case "layer":
            return [nn.LayerNorm([width, *size])]
        case "batch":
            return [nn.BatchNorm2d(width)]
        case "none":
            return []


def _activation(activation: Activation) -> nn.Module:
    match activation:
        case "relu":
            return nn.ReLU()
        case "leaky":
            return nn.LeakyReLU(0.01)
        case "sigmoid":
            return nn.Sigmoid()
