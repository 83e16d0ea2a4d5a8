from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.learn.distillation.plan import DistillPlan
from fewer.learn.distillation.resume import resume_run, save_run
from fewer.learn.distillation.task import Synthetic


def started() -> tuple[Synthetic, list[torch.optim.Optimizer]]:
    synthetic = Synthetic(torch.zeros(4, 1, 3, 3, requires_grad=True), 2)
    return synthetic, [torch.optim.SGD([synthetic.images], lr=0.5, momentum=0.5)]


def test_pictures_and_momentum_come_back(tmp_path: Path) -> None:
    synthetic, optimizers = started()
    for _ in range(3):
        synthetic.images.grad = torch.ones_like(synthetic.images)
        optimizers[0].step()
    save_run(tmp_path, synthetic, optimizers, DistillPlan(), 3, "abc")
    other, others = started()
    assert resume_run(tmp_path, other, others, DistillPlan(seconds=9.0), "abc") == 3
    for one, optimizer in ((synthetic, optimizers[0]), (other, others[0])):
        one.images.grad = torch.ones_like(one.images)
        optimizer.step()
    assert torch.equal(synthetic.images, other.images)


def test_nothing_to_resume_and_other_settings(tmp_path: Path) -> None:
    synthetic, optimizers = started()
    assert resume_run(tmp_path, synthetic, optimizers, DistillPlan(), "abc") == 0
    save_run(tmp_path, synthetic, optimizers, DistillPlan(), 1, "abc")
    with pytest.raises(ConfigError, match="other settings"):
        resume_run(tmp_path, synthetic, optimizers, DistillPlan(learning_rate=2.0), "abc")
    with pytest.raises(ConfigError, match="checkpoints"):
        resume_run(None, synthetic, optimizers, DistillPlan(), "abc")


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    synthetic, optimizers = started()
    save_run(tmp_path, synthetic, optimizers, DistillPlan(), 1, "abc")
    larger = Synthetic(torch.zeros(4, 1, 5, 5, requires_grad=True), 2)
    with pytest.raises(ConfigError, match=r"other data: its images are \(4, 1, 3, 3\), this run's \(4, 1, 5"):
        resume_run(tmp_path, larger, [torch.optim.SGD([larger.images], lr=0.5)], DistillPlan(), "abc")


def test_other_pictures_of_the_same_shape_are_refused(tmp_path: Path) -> None:
    synthetic, optimizers = started()
    save_run(tmp_path, synthetic, optimizers, DistillPlan(), 1, "abc")
    with pytest.raises(ConfigError, match="made from other pictures"):
        resume_run(tmp_path, synthetic, optimizers, DistillPlan(), "abd")
