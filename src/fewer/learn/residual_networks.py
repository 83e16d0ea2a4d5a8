"""Residual networks for small pictures: WRN-28-k and ResNet-18 with a 3x3 stem."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class WideResNet(nn.Module):
    """WRN-depth-k (Zagoruyko and Komodakis 2016) as the semi-supervised field uses it: pre-activation
    blocks, LeakyReLU 0.1, batch norm with momentum 0.001; 1.47 M parameters for WRN-28-2 and 10 classes.

    Parameter names follow the widely used checkpoints: conv1, block{1,2,3}.layer.{i}.*, bn1, then the
    linear layer (`fc` there, `classifier` here).
    """

    def __init__(self, channels: int, classes: int, *, depth: int = 28, widen: int = 2) -> None:
        super().__init__()
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.block1 = WideStage(count, widths[0], widths[1], stride=1, activate_before_residual=True)
        self.block2 = WideStage(count, widths[1], widths[2], stride=2)
        self.block3 = WideStage(count, widths[2], widths[3], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3], momentum=1e-3, eps=1e-3)
        self.classifier = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu", a=0.1)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        maps = self.block3(self.block2(self.block1(self.conv1(images))))
        return F.leaky_relu(self.bn1(maps), 0.1).mean((2, 3))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(images))


class WideStage(nn.Module):
    """`count` blocks; the first one changes width and resolution."""

    def __init__(
        self, count: int, channels: int, out: int, stride: int, activate_before_residual: bool = False
    ) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                WideBlock(
                    channels if i == 0 else out,
                    out,
                    stride if i == 0 else 1,
                    activate_before_residual and i == 0,
                )
                for i in range(count)
            )
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.layer(maps)


class WideBlock(nn.Module):
    """Batch norm, activation, convolution, twice, beside a shortcut."""

    def __init__(self, channels: int, out: int, stride: int, activate_before_residual: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels, momentum=1e-3, eps=1e-3)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, momentum=1e-3, eps=1e-3)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else None
        self.activate_before_residual = activate_before_residual

    def forward(self, maps: Tensor) -> Tensor:
        active = F.leaky_relu(self.bn1(maps), 0.1)
        shortcut = active if self.activate_before_residual else maps
        if self.convShortcut is not None:
            shortcut = self.convShortcut(active if self.activate_before_residual else maps)
        return shortcut + self.conv2(F.leaky_relu(self.bn2(self.conv1(active)), 0.1))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no first pooling, for pictures of 28 to 64 pixels. From 64 pixels on the
    stem has stride 2, so that the four stages see 32, 16, 8, 4 pixels as they do for the smaller pictures."""

    def __init__(
        self,
        channels: int,
        classes: int,
        norm: Literal["batch", "instance"] = "batch",
        *,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 3, stem_stride, padding=1, bias=False), _norm(norm, 64), nn.ReLU()
        )
        stages: list[nn.Module] = []
        before = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            stages += [BasicBlock(before, width, stride, norm), BasicBlock(width, width, 1, norm)]
            before = width
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(512, classes)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        return self.stages(self.stem(images)).mean((2, 3))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(images))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, channels: int, out: int, stride: int, norm: Literal["batch", "instance"]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            _norm(norm, out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            _norm(norm, out),
        )
        same = channels == out and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), _norm(norm, out))
        )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.body(maps) + self.shortcut(maps))


def _norm(norm: Literal["batch", "instance"], width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(width, width)
