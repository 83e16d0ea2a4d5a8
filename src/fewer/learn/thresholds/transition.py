"""Estimating T(x), T_ij(x) = P(pseudo-label j | true class i, x): one matrix for all images, or one for each.

Both are trained through the forward-corrected loss -log (softmax(f(x)) T(x))_s, or (`labelled_row_loss`)
from labelled images, whose row y of T must reproduce the classifier's current answer. `CountedTransition`
needs no training: it counts those answers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fewer.learn.residual_networks import BasicBlock
from fewer.learn.thresholds.instance import Transition, column


class ClassTransition(nn.Module):
    """One K x K matrix: (scale I + sigmoid(W) off the diagonal), rows normalised; W starts at -2.

    With K = 10 and scale 5 the diagonal starts at 0.8233. Scale 5 for 10 classes, 10 for 100.
    """

    def __init__(self, classes: int, scale: float = 5.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.full((classes, classes), -2.0))

    def forward(
        self, images: Float[Tensor, "batch channels height width"] | None = None
    ) -> Float[Tensor, "classes classes"]:
        """The matrix; images are not looked at."""
        identity = torch.eye(len(self.weight), device=self.weight.device, dtype=self.weight.dtype)
        raw = self.scale * identity + self.weight.sigmoid() * (1 - identity)
        return raw / raw.sum(1, keepdim=True)


class InstanceTransition(nn.Module):
    """A network from image to K x K matrix: softmax over each row of (head(x) + scale I).

    `body="cnn"` is four convolutions of width 32, for the CPU; `"resnet"` the ResNet-18 of the reference.
    """

    def __init__(self, channels: int, classes: int, scale: float = 1.0, *, body: str = "cnn") -> None:
        super().__init__()
        self.classes, self.scale = classes, scale
        self.body, width = (_resnet(channels), 512) if body == "resnet" else (_four_layers(channels), 32)
        self.head = nn.Linear(width, classes * classes)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes classes"]:
        rows = self.head(self.body(images).mean((2, 3))).float().unflatten(1, (self.classes, self.classes))
        return (rows + self.scale * torch.eye(self.classes, device=rows.device)).softmax(2)


class CountedTransition(nn.Module):
    """One K x K matrix, counted instead of trained: row y is the running mean of the classifier's answers
    for labelled images of class y. It knows from the first steps which classes are given too often."""

    sums: Tensor

    def __init__(self, classes: int, momentum: float = 0.999) -> None:
        super().__init__()
        self.momentum = momentum
        # One image of each class answered rightly stands at the start, so that no row is empty.
        self.register_buffer("sums", torch.eye(classes))

    @torch.no_grad()
    def count_anew(
        self, labels: Int64[Tensor, " batch"], probabilities: Float[Tensor, "batch classes"]
    ) -> None:
        """Forgets all earlier answers and counts these."""
        self.sums.copy_(torch.eye(len(self.sums), device=self.sums.device))
        self.sums.index_add_(0, labels, probabilities.float())

    @torch.no_grad()
    def update(self, labels: Int64[Tensor, " batch"], probabilities: Float[Tensor, "batch classes"]) -> None:
        """Adds the answers for one labelled batch."""
        self.sums.mul_(self.momentum).index_add_(0, labels, probabilities.float())

    def forward(
        self, images: Float[Tensor, "batch channels height width"] | None = None
    ) -> Float[Tensor, "classes classes"]:
        """The matrix; images are not looked at."""
        return self.sums / self.sums.sum(1, keepdim=True)


def forward_corrected_loss(
    logits: Float[Tensor, "batch classes"], transition: Transition, pseudo: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """-log( [softmax(logits) T]_s + 1e-12 ) for each image; gradients flow into both."""
    return -((logits.softmax(1) * column(transition, pseudo)).sum(1) + 1e-12).log()


def labelled_row_loss(
    transition: Transition,
    labels: Int64[Tensor, " batch"],
    probabilities: Float[Tensor, "batch classes"],
) -> Float[Tensor, ""]:
    """-sum_j p_j log T_yj: row y of T learns the classifier's present answer; other rows get no gradient."""
    rows = transition[labels] if transition.ndim == 2 else transition[torch.arange(len(labels)), labels]
    return -(probabilities.detach() * (rows + 1e-12).log()).sum(1).mean()


def _four_layers(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stride in (1, 2, 1, 2):
        layers += [nn.Conv2d(channels, 32, 3, stride, padding=1), nn.GroupNorm(4, 32), nn.ReLU()]
        channels = 32
    return nn.Sequential(*layers)


def _resnet(channels: int) -> nn.Sequential:
    # A stem without padding, four stages of two blocks, as the reference builds it.
    layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(before, width, stride, "batch"), BasicBlock(width, width, 1, "batch")]
        before = width
    return nn.Sequential(*layers)


def transition_error(
    estimated: Float[Tensor, "classes classes"],
    pseudo: Int64[Tensor, " n"],
    labels: Int64[Tensor, " n"],
) -> float:
    """Mean absolute distance of T's entries from the rates counted on labelled images (calibration of T)."""
    classes = len(estimated)
    counts = torch.bincount(labels * classes + pseudo, minlength=classes**2).reshape(classes, classes)
    seen = counts.sum(1) > 0
    rates = F.normalize(counts[seen].double(), p=1, dim=1)
    return float((estimated[seen].double().cpu() - rates.cpu()).abs().mean())
