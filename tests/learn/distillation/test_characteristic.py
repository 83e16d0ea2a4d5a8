import pytest
import torch

from fewer.learn.distillation.characteristic import (
    characteristic_distance,
    characteristic_function,
    characteristic_matching,
)
from fewer.learn.distillation.plan import resolve
from fewer.learn.distillation.start import starting_set
from fewer.learn.distillation.task import Task
from fewer.learn.distillation.trajectory import train_experts
from tests.learn.distillation.conftest import make_pictures, tiny_plan


def test_a_gaussian_has_a_gaussian_characteristic_function() -> None:
    features = torch.randn(1, 200_000, 2, generator=torch.Generator().manual_seed(0))
    frequencies = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.7, -1.0]])
    real, imaginary = characteristic_function(features, frequencies)
    torch.testing.assert_close(real[0], torch.exp(-frequencies.square().sum(1) / 2), atol=5e-3, rtol=0)
    assert imaginary.abs().max() < 5e-3


def test_equal_sets_are_at_no_distance_and_others_are() -> None:
    features, frequencies = torch.randn(2, 9, 4), torch.randn(50, 4)
    assert float(characteristic_distance(features, features, frequencies)) == pytest.approx(0, abs=1e-3)
    assert float(characteristic_distance(features, features + 1.0, frequencies)) > 0.1


def test_it_sees_what_means_do_not() -> None:
    wide, frequencies = torch.tensor([[[-2.0], [2.0]]]), torch.randn(50, 1)
    assert float(characteristic_distance(wide, torch.zeros(1, 2, 1), frequencies)) > 0.1


def test_the_formula_by_complex_numbers() -> None:
    ours, real, frequencies = torch.randn(1, 3, 2), torch.randn(1, 5, 2), torch.randn(7, 2)
    f, g = ((1j * (one[0] @ frequencies.T)).exp().mean(0) for one in (ours, real))
    inner = 0.5 * (f.abs() - g.abs()) ** 2 + f.abs() * g.abs() * (1 - (f.angle() - g.angle()).cos())
    torch.testing.assert_close(characteristic_distance(ours, real, frequencies), inner.sqrt().mean())


def test_one_loss_moves_every_picture() -> None:
    plan = resolve(tiny_plan("ncfm"), ())
    task = Task.of(make_pictures(count=24), plan, torch.device("cpu"))
    task = Task(task.source, task.network, plan, task.device, train_experts(task))
    synthetic = starting_set(task)
    synthetic.images.requires_grad_()
    next(characteristic_matching(task, synthetic, 0)).backward()
    assert (synthetic.images.grad.abs().sum((1, 2, 3)) > 0).all()
