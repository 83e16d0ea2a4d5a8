"""How drawings of a class-conditional model are judged.

A small classifier, trained on the real pictures, tells their class and gives the features of the Fréchet
distance.
"""

from itertools import pairwise

import torch
from graphed import Trainee
from torch import Tensor, nn

from fewer.core.device import isolated_randomness
from fewer.core.errors import ConfigError
from fewer.generate.autoencoder.report import frechet_distance
from fewer.generate.conditional.pictures import LabelledPictures
from fewer.generate.sampling.sampler import sample


class Judge(nn.Module):
    """The fixed classifier: three convolutional stages; its last hidden layer gives the features."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 128)
        stages = []
        for a, b in pairwise(widths):
            stages += [nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(8, b), nn.SiLU()]
            stages += [nn.Conv2d(b, b, 3, 1, 1), nn.GroupNorm(8, b), nn.SiLU()]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(128, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.stages(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def judge_trainee(train: LabelledPictures, steps: int) -> Trainee:
    device = train.images.device
    with isolated_randomness(0):
        judge = Judge(train.images.shape[1], len(train.class_names)).to(device)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train.labels), (128,), generator=generator, device=device)
        noise = 0.05 * torch.randn(128, *train.images.shape[1:], generator=generator, device=device)
        return nn.functional.cross_entropy(judge(train.images[rows] + noise), train.labels[rows])

    groups = [{"params": list(judge.parameters()), "weight_decay": 0.05}]
    return Trainee(
        name="judge", model=judge, loss=loss, groups=groups, rate=2e-3, steps=steps, warmup=20,
        final_rate=0.02, seed=0,
    )  # fmt: skip


@torch.no_grad()
def draw(
    model: nn.Module, labels: Tensor, shape: tuple[int, ...], none: int, guidance: float = 1.5
) -> Tensor:
    """Pictures of these classes: 20 steps of Flow-DPM-Solver, the same noise for every model."""
    noise = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(7)).to(labels.device)
    both = torch.cat([torch.full_like(labels, none), labels])

    def velocity(latents: Tensor, level: float) -> Tensor:
        time_ = torch.full((len(both),), float(level), device=latents.device)
        plain, classed = model(latents.repeat(2, 1, 1, 1), time_, both).chunk(2)
        return plain + guidance * (classed - plain)

    latents = noise
    for step in sample(velocity, noise, 20, 1.0):
        latents = step.latents
    return latents.clamp(-1, 1)


@torch.no_grad()
def judged(model: nn.Module, judge: nn.Module, train: LabelledPictures, count: int) -> dict[str, float]:
    labels = torch.arange(count, device=train.labels.device) % len(train.class_names)
    shape, none = tuple(train.images.shape[1:]), len(train.class_names)
    try:
        drawn = torch.cat([draw(model, part, shape, none) for part in labels.split(1000)])
    except ConfigError:  # the solver met values that are not finite
        return {"class_accuracy": float("nan"), "frechet": float("nan")}
    rows = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(3))[:count]
    real = train.images[rows.to(train.images.device)]
    accuracy = (judge(drawn).argmax(1) == labels).float().mean()
    distance = frechet_distance(judge.features(drawn).cpu(), judge.features(real).cpu())  # pyright: ignore
    return {"class_accuracy": round(float(accuracy), 4), "frechet": round(distance, 4)}
