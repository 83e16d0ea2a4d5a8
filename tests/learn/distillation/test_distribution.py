import pytest
import torch

from fewer.learn.distillation.distribution import (
    distribution_matching,
    improved_distribution_matching,
    mean_distance,
)
from fewer.learn.distillation.plan import resolve
from fewer.learn.distillation.start import starting_set
from fewer.learn.distillation.task import Task
from fewer.learn.distillation.trajectory import train_experts
from tests.learn.distillation.conftest import make_pictures, tiny_plan


def test_equal_batches_are_at_no_distance() -> None:
    features = torch.randn(3, 5, 11)
    assert float(mean_distance(features, features)) == 0.0
    assert float(mean_distance(features, features[:, torch.randperm(5)])) == pytest.approx(0, abs=1e-10)
    assert float(mean_distance(features[:, :1] * 0 + 2, features * 0)) == pytest.approx(4 * 3 * 11)


@pytest.mark.parametrize("augmentations", [(), ("crop", "rotate", "brightness")])
def test_the_real_batch_itself_matches_exactly(augmentations: tuple[str, ...]) -> None:
    plan = resolve(tiny_plan("dm", images_per_class=8, start="real", augmentations=augmentations), ())
    task = Task.of(make_pictures(count=24), plan, torch.device("cpu"))
    synthetic = starting_set(task)
    assert float(next(distribution_matching(task, synthetic, 0))) < 1e-8
    synthetic.images = torch.randn_like(synthetic.images).requires_grad_()
    loss = next(distribution_matching(task, synthetic, 0))
    loss.backward()
    assert loss > 1e-4 and synthetic.images.grad.abs().sum() > 0


def test_idm_adds_the_classes() -> None:
    plan = resolve(tiny_plan("idm", images_per_class=2, start="real"), ())
    task = Task.of(make_pictures(count=24), plan, torch.device("cpu"))
    task = Task(task.source, task.network, plan, task.device, train_experts(task))
    synthetic = starting_set(task)
    synthetic.images.requires_grad_()
    next(improved_distribution_matching(task, synthetic, 1)).backward()
    assert synthetic.images.grad.abs().sum() > 0
