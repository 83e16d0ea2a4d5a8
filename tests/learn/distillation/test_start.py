import logging
from dataclasses import replace

import pytest
import torch

from fewer.learn.distillation.plan import TrajectoryPlan, resolve
from fewer.learn.distillation.stacked import logits
from fewer.learn.distillation.start import MEAN_OF, starting_set
from fewer.learn.distillation.task import Task
from fewer.learn.distillation.trajectory import snapshot, train_experts
from tests.learn.distillation.conftest import make_pictures, tiny_plan


def started(start: str, count: int = 300, **changes: object) -> tuple[Task, torch.Tensor]:
    task = Task.of(
        make_pictures(count=count), resolve(tiny_plan("dm", start=start, **changes), ()), torch.device("cpu")
    )
    return task, starting_set(task).images


def test_noise_knows_nothing_of_the_pictures() -> None:
    _, images = started("noise")
    other = make_pictures(count=300, seed=9)
    again = starting_set(
        Task.of(other, resolve(tiny_plan("dm", start="noise"), ()), torch.device("cpu"))
    ).images
    assert torch.equal(images, again)
    assert abs(float(images.std()) - 1) < 0.15


def test_real_starts_are_real_pictures_of_their_class() -> None:
    task, images = started("real")
    for row, picture in enumerate(images):
        same = (task.source.of_class(row // 2) == picture).flatten(1).all(1)
        assert bool(same.any())


def test_datm_starts_from_pictures_that_an_expert_knows() -> None:
    """Every fourth label is wrong, so that an expert disagrees with many."""
    data = make_pictures(count=120)
    labels = data.labels.clone()
    labels[::4] = (labels[::4] + 1) % 3
    plan = tiny_plan(
        "datm", images_per_class=8, trajectory=TrajectoryPlan(experts=1, epochs=12, latest_start=1)
    )
    task = Task.of(replace(data, labels=labels), resolve(plan, ()), torch.device("cpu"))
    task = replace(task, trajectories=train_experts(task, momentum=0.9))
    expert = snapshot(task.trajectories, -1, 0)
    synthetic = starting_set(task)
    assert torch.equal(logits(task.network, expert, synthetic.images).argmax(1), synthetic.labels())
    everyone = logits(task.network, expert, task.source.images).argmax(1)
    assert 0.4 < float((everyone == task.source.labels).float().mean()) < 0.9


def test_class_means_are_near_the_mean_and_near_nobody() -> None:
    task, images = started("class-means")
    for row, picture in enumerate(images):
        own = task.source.of_class(row // 2)
        to_mean = (picture - own.mean(0)).norm()
        to_nearest = (own - picture).flatten(1).norm(dim=1).min()
        assert to_mean < to_nearest
    assert MEAN_OF >= 16


def test_a_small_class_repeats_with_jitter_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _, images = started("real", count=12, images_per_class=6)
    assert "class 'class-0' has 4 pictures, fewer than the 6" in caplog.text
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)


@pytest.mark.parametrize("start", ["noise", "class-means", "real"])
def test_multi_formation_keeps_the_stored_shape(start: str) -> None:
    assert started(start, factor=2)[1].shape == (6, 1, 8, 8)
