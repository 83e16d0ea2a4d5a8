from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fewer.learn.distillation.augment import default_augmentations
from fewer.learn.distillation.plan import TrajectoryPlan, resolve
from fewer.learn.distillation.start import starting_set
from fewer.learn.distillation.task import Task
from fewer.learn.distillation.trajectory import (
    _order,
    latest_start,
    random_snapshot,
    snapshot,
    train_experts,
    trajectory_distance,
    trajectory_matching,
)
from fewer.learn.graphed import Graphs, _layout
from tests.learn.distillation.conftest import make_pictures, tiny_plan


def task_of(method: str = "mtt", **changes: object) -> Task:
    plan = resolve(tiny_plan(method, **changes), ())
    task = Task.of(make_pictures(count=300), plan, torch.device("cpu"))
    return Task(task.source, task.network, plan, task.device, train_experts(task))


def test_experts_are_recorded_from_their_start_and_learn() -> None:
    task = task_of(
        trajectory=TrajectoryPlan(experts=3, epochs=4, learning_rate=0.1, expert_steps=1, latest_start=1)
    )
    weight = task.trajectories["head.weight"]
    assert weight.shape[:2] == (5, 3)
    assert not torch.equal(weight[0, 0], weight[0, 1])  # different starts
    assert all(not torch.equal(weight[k], weight[k + 1]) for k in range(4))
    from fewer.learn.distillation.stacked import logits

    losses = [
        torch.nn.functional.cross_entropy(
            logits(task.network, snapshot(task.trajectories, epoch, 1), task.source.images),
            task.source.labels,
        )
        for epoch in (0, 4)
    ]
    assert losses[1] < losses[0]


def test_balanced_experts_see_every_class_equally_often() -> None:
    """Ten pictures of one class, sixty of two: every batch holds each as often, and every picture comes."""
    data = make_pictures(count=180)
    rows = torch.cat([data.labels.eq(0).nonzero()[:10], data.labels.ne(0).nonzero()]).flatten()
    plan = resolve(tiny_plan("mtt", trajectory=TrajectoryPlan(balanced=True)), ())
    task = Task.of(data.select(rows), plan, torch.device("cpu"))
    order = _order(task, torch.Generator().manual_seed(0))
    assert len(order) == 130
    labels = task.source.labels[order]
    assert all(labels[start : start + 30].bincount().tolist() == [10, 10, 10] for start in range(0, 120, 30))
    assert set(order[labels == 0].tolist()) == set(range(10))
    for label in (1, 2):
        own = order[labels == label]
        assert own.unique().numel() == len(own)  # a large class gives none twice
    plain = Task.of(data.select(rows), resolve(tiny_plan("mtt"), ()), torch.device("cpu"))
    assert sorted(_order(plain, torch.Generator().manual_seed(0)).tolist()) == list(range(130))


def test_experts_trained_together_are_the_experts_trained_alone() -> None:
    three = task_of(batched=True).trajectories
    two = task_of(batched=False).trajectories
    for name in three:
        torch.testing.assert_close(three[name], two[name], atol=1e-5, rtol=1e-4)


def test_the_distance_is_one_for_a_student_that_stays_and_zero_for_one_that_arrives() -> None:
    start, goal = {"w": torch.zeros(4), "v": torch.ones(2, 2)}, {"w": torch.ones(4), "v": torch.zeros(2, 2)}
    assert float(trajectory_distance(start, goal, start)) == pytest.approx(1)
    assert float(trajectory_distance(goal, goal, start)) == 0
    half = {name: (start[name] + goal[name]) / 2 for name in start}
    assert float(trajectory_distance(half, goal, start)) == pytest.approx(0.25)


@pytest.mark.parametrize("students", [1, 2])
def test_pictures_labels_and_rate_are_all_moved(students: int) -> None:
    trajectory = TrajectoryPlan(
        experts=2,
        epochs=2,
        student_steps=2,
        expert_steps=1,
        latest_start=1,
        students=students,
        student_batch=4,
    )
    task = task_of("datm", trajectory=trajectory, start="real")
    synthetic = starting_set(task)
    for value in synthetic.learnt().values():
        value.requires_grad_()
    next(trajectory_matching(task, synthetic, 0)).backward()
    assert set(synthetic.learnt()) == {"images", "label_logits", "learning_rate"}
    assert all(value.grad.abs().sum() > 0 for value in synthetic.learnt().values())


def test_datm_lets_the_start_grow() -> None:
    trajectory = TrajectoryPlan(experts=1, epochs=20, latest_start=10)
    task = Task.of(
        make_pictures(),
        resolve(tiny_plan("datm", iterations=100, trajectory=trajectory), ()),
        torch.device("cpu"),
    )
    assert [latest_start(task, step) for step in (0, 5, 10, 99)] == [5, 8, 10, 10]


def test_a_random_snapshot_is_one_of_those_recorded() -> None:
    task = task_of()
    found = random_snapshot(task, torch.Generator().manual_seed(0))["head.bias"]
    assert any(torch.equal(found, task.trajectories["head.bias"][e, k]) for e in range(3) for k in range(2))
    oldest = random_snapshot(task, torch.Generator().manual_seed(0), oldest=True)["head.bias"]
    assert any(torch.equal(oldest, task.trajectories["head.bias"][-1, k]) for k in range(2))


def test_all_steps_have_one_form_whatever_their_augmentation() -> None:
    """A form is a graph with memory of its own on a GPU; changed colour pictures lie this way or that."""
    forms = set()

    class Recorder(Graphs):
        def loss(self, name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:  # type: ignore[override]
            def call(*inputs: object) -> Tensor:
                leaves, form = pytree.tree_flatten(inputs)
                forms.add((str(form), *((leaf.shape, leaf.dtype, _layout(leaf)) for leaf in leaves)))
                return function(*inputs)

            return call

    plan = resolve(tiny_plan("mtt", trajectory=TrajectoryPlan(experts=2, epochs=2)), default_augmentations(3))
    task = Task.of(make_pictures(channels=3), plan, torch.device("cpu"))
    task = replace(task, trajectories=train_experts(task), graphs=Recorder())
    synthetic = starting_set(task)
    for step in range(4):  # of 20 student steps each, with an operation of their own
        next(trajectory_matching(task, synthetic, step))
    assert len(forms) == 1
