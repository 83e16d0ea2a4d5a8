import logging

import pytest
import torch

from fewer.learn.distillation.plan import resolve
from fewer.learn.distillation.start import MEAN_OF, starting_set
from fewer.learn.distillation.task import Task
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
    assert "fewer than the 6" in caplog.text
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)


@pytest.mark.parametrize("start", ["noise", "class-means", "real"])
def test_multi_formation_keeps_the_stored_shape(start: str) -> None:
    assert started(start, factor=2)[1].shape == (6, 1, 8, 8)
