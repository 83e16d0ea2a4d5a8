import pytest
import torch

from fewer.learn.data import LabelledImages
from fewer.learn.distillation.architectures import NetworkPlan
from fewer.learn.distillation.plan import DistillPlan, TrajectoryPlan


def make_pictures(
    count: int = 60, classes: int = 3, size: int = 8, channels: int = 1, seed: int = 0
) -> LabelledImages:
    """Easy pictures: each class is a bright bar in its own rows, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.rand(count, size, size, channels, generator=generator) * 90
    for label in range(classes):
        rows = slice(label * size // classes, (label + 1) * size // classes)
        images[labels == label, rows] += 120
    names = tuple(f"class-{label}" for label in range(classes))
    return LabelledImages(images.round().to(torch.uint8), labels, names)


def tiny_plan(method: str = "dm", **changes: object) -> DistillPlan:
    settings: dict[str, object] = {
        "images_per_class": 2,
        "iterations": 3,
        "real_batch": 8,
        "outer_steps": 2,
        "inner_steps": 2,
        "network": NetworkPlan(width=8, depth=2),
        "trajectory": TrajectoryPlan(experts=2, epochs=2, student_steps=2, expert_steps=1, latest_start=1),
    }
    return DistillPlan(method=method, **{**settings, **changes})  # pyright: ignore


@pytest.fixture
def pictures() -> LabelledImages:
    return make_pictures()


@pytest.fixture
def test_pictures() -> LabelledImages:
    return make_pictures(count=45, seed=1)
