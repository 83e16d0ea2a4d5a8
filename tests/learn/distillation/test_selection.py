import pytest
import torch

from fewer.core.errors import DataError
from fewer.learn.distillation.plan import resolve
from fewer.learn.distillation.selection import herding_rows, k_centre_rows, random_rows, telling_crops
from fewer.learn.distillation.task import Source, Task
from fewer.learn.distillation.trajectory import train_experts
from tests.learn.distillation.conftest import make_pictures, tiny_plan


@pytest.fixture
def source() -> Source:
    return Source.of(make_pictures(count=45), torch.device("cpu"))


def test_all_selections_are_stratified_and_without_repeats(source: Source) -> None:
    features = source.images.flatten(1)
    for rows in (
        random_rows(source, 5, 0),
        herding_rows(source, features, 5),
        k_centre_rows(source, features, 5),
    ):
        assert torch.equal(source.labels[rows], torch.arange(3).repeat_interleave(5))
        assert len(set(rows.tolist())) == 15


def test_herding_approaches_the_mean_better_than_chance(source: Source) -> None:
    features = source.images.flatten(1)

    def gap(rows: torch.Tensor) -> float:
        picked = features[rows].unflatten(0, (3, 5)).mean(1)
        means = torch.stack([source.of_class(label).flatten(1).mean(0) for label in range(3)])
        return float((picked - means).norm())

    assert gap(herding_rows(source, features, 5)) < min(gap(random_rows(source, 5, s)) for s in range(10))


def test_k_centre_covers_within_twice_the_best_possible(source: Source) -> None:
    from itertools import combinations

    points = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))
    small = Source(
        torch.zeros(12, 1, 2, 2),
        torch.zeros(12).long(),
        (0, 12),
        torch.ones(1),
        torch.ones(1),
        torch.arange(12),
    )

    def radius(rows: list[int]) -> float:
        return float(torch.cdist(points, points[rows]).min(1).values.max())

    best = min(radius(list(rows)) for rows in combinations(range(12), 3))
    assert radius(k_centre_rows(small, points, 3).tolist()) <= 2 * best + 1e-6


def test_a_class_that_is_too_small_is_refused(source: Source) -> None:
    for choose in (
        lambda: random_rows(source, 16, 0),
        lambda: herding_rows(source, source.images.flatten(1), 16),
    ):
        with pytest.raises(DataError, match="has 15 pictures"):
            choose()


def test_rded_tiles_crops_that_the_expert_knows() -> None:
    plan = resolve(tiny_plan("rded"), ())
    task = Task.of(make_pictures(count=90), plan, torch.device("cpu"))
    task = Task(task.source, task.network, plan, task.device, train_experts(task, momentum=0.9))
    synthetic = telling_crops(task)
    assert synthetic.images.shape == (6, 1, 8, 8) and synthetic.factor == 2
    assert synthetic.decoded().shape[0] == 24
