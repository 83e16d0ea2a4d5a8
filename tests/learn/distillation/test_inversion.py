import torch

from fewer.learn.distillation.architectures import NetworkPlan
from fewer.learn.distillation.inversion import inversion_loss, invert, train_batch_norm_teacher
from fewer.learn.distillation.plan import resolve
from fewer.learn.distillation.start import starting_set
from fewer.learn.distillation.task import Source, Task
from tests.learn.distillation.conftest import make_pictures, tiny_plan

CPU = torch.device("cpu")


def test_real_pictures_have_a_smaller_loss_than_noise() -> None:
    source = Source.of(make_pictures(count=90), CPU)
    teacher = train_batch_norm_teacher(source, NetworkPlan(width=8, depth=2), 10, 0, CPU)
    noise = torch.randn_like(source.images)
    real, other = (
        float(inversion_loss(teacher, images, source.labels).detach()) for images in (source.images, noise)
    )
    assert real < other
    assert not any(layer._forward_hooks for layer in teacher.modules())


def test_inverting_lowers_the_loss_and_keeps_the_labels() -> None:
    plan = resolve(tiny_plan("sre2l", iterations=30), ())
    task = Task.of(make_pictures(count=90), plan, CPU)
    synthetic = starting_set(task)
    before = synthetic.images.clone()
    teacher = invert(task, synthetic)
    losses = [
        float(inversion_loss(teacher, images, synthetic.labels()).detach())
        for images in (before, synthetic.images)
    ]
    assert losses[1] < losses[0]
    assert not synthetic.images.requires_grad
