from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.thresholds.batch import Batch
from fewer.learn.thresholds.instance import InstanceThreshold
from fewer.learn.thresholds.instant import InstantState, decide, instant, recount
from fewer.learn.thresholds.transition import labelled_row_loss
from tests.learn.thresholds.conftest import pictures

PLAN = SemiSupervisedPlan(running=0.9, warm_up=0.1)


def test_warm_up_has_the_base_threshold_and_plain_loss(network: nn.Module, batch: Batch) -> None:
    state = InstantState(PLAN, 1, 3, 8)
    got = instant(network, replace(batch, progress=0.05), state, PLAN)
    torch.testing.assert_close(got.threshold, torch.full((4,), float(0.9 * got.confidence.mean())))
    strong = batch.strong.flatten(1)[:, :3]
    plain = F.cross_entropy(strong, got.pseudo, reduction="none")
    torch.testing.assert_close(got.unsupervised, (plain * got.weights).mean())
    got.loss.backward()
    assert all(p.grad is None for p in state.parameters())


def test_later_the_threshold_is_that_of_the_module(network: nn.Module, batch: Batch) -> None:
    plan = replace(PLAN, posterior="flattened")
    state = InstantState(plan, 1, 3, 8)
    got = instant(network, batch, state, plan)
    aligned = state.alignment(batch.weak.flatten(1)[:, :3].softmax(1))
    expected = InstanceThreshold(classes=3)(aligned, state.transition().detach())
    torch.testing.assert_close(got.threshold, expected.threshold)
    assert got.threshold.std() > 0


def test_gradient_reaches_network_and_transition(network: nn.Module, batch: Batch) -> None:
    plan = replace(PLAN, estimation="class")
    state = InstantState(plan, 1, 3, 8)
    instant(network, batch, state, plan).loss.backward()
    assert list(state.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in state.parameters())
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("estimation", ["class", "instance", "labelled-row"])
@pytest.mark.parametrize("compare", ["posterior", "noisy"])
def test_all_estimators_and_forms_run(
    network: nn.Module, batch: Batch, estimation: str, compare: str
) -> None:
    plan = replace(PLAN, estimation=estimation, compare=compare, posterior="plain", cutoff=0.01)
    torch.manual_seed(0)
    state = InstantState(plan, 1, 3, 8)
    got = instant(network, batch, state, plan)
    got.loss.backward()
    assert torch.isfinite(got.loss)
    assert sum(float(p.grad.abs().sum()) for p in state.parameters() if p.grad is not None) > 0


def test_a_class_given_too_often_is_held_to_a_higher_threshold(network: nn.Module, batch: Batch) -> None:
    plan = replace(PLAN, estimation="counted")
    state = InstantState(plan, 1, 3, 8)
    # All labelled images are answered with class 0.
    lost = replace(batch, labelled=torch.tensor([6.0, 0, 0, 0]).reshape(1, 1, 2, 2).expand(3, 1, 2, 2))
    for _ in range(30):
        instant(network, lost, state, plan)
    alike = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    decision = state.threshold(alike, state.transition(None))
    assert decision.tau[0] > 2 * decision.tau[1]


def test_a_recount_is_the_mean_answer_of_the_network_as_it_is(network: nn.Module, batch: Batch) -> None:
    state = InstantState(replace(PLAN, estimation="recounted"), 1, 3, 8)
    labels = torch.tensor([0, 0, 0, 2])
    for _ in range(2):  # what was counted before is forgotten
        recount(network, state, batch.weak, labels)
    answers = state.alignment(network(batch.weak).softmax(1)).detach()
    expected = torch.eye(3)
    expected[0] = (expected[0] + answers[:3].sum(0)) / 4
    expected[2] = (expected[2] + answers[3]) / 2
    torch.testing.assert_close(state.transition(None), expected)
    assert network.training


def test_a_recount_minimises_the_loss_of_the_labelled_rows(network: nn.Module, batch: Batch) -> None:
    """Without the picture that stands in every row at the start: no other matrix has a lower loss."""
    state = InstantState(replace(PLAN, estimation="recounted"), 1, 3, 8)
    labels = torch.tensor([0, 0, 0, 0])
    recount(network, state, batch.weak, labels)
    answers = state.alignment(network(batch.weak).softmax(1)).detach()
    mean = torch.eye(3)
    mean[0] = state.transition.sums[0] - torch.eye(3)[0]  # pyright: ignore
    mean = mean / mean.sum(1, keepdim=True)
    least = labelled_row_loss(mean, labels, answers)
    for seed in range(20):
        other = (mean + 0.1 * torch.rand(3, 3, generator=torch.Generator().manual_seed(seed))).clamp(min=1e-6)
        assert labelled_row_loss(other / other.sum(1, keepdim=True), labels, answers) >= least - 1e-6


def test_other_views_that_disagree_raise_the_threshold(network: nn.Module, batch: Batch) -> None:
    plan = replace(PLAN, posterior="views", estimation="recounted")
    p = torch.tensor([[0.999, 0.0005, 0.0005], [0.9, 0.05, 0.05], [0.1, 0.05, 0.85], [0.5, 0.3, 0.2]])
    agreeing = torch.cat([batch.weak, batch.weak])
    doubting = torch.cat([batch.weak, pictures(p.log())])  # the second picture looks like class 0 there
    found = []
    for again in (agreeing, doubting):
        state = InstantState(plan, 1, 3, 8)
        found.append(instant(network, replace(batch, again=again), state, plan))
    one, other = found
    same = torch.tensor([True, False, True, True])
    torch.testing.assert_close(one.threshold[same], other.threshold[same])
    assert other.threshold[1] > one.threshold[1] + 0.2
    assert one.weights[1] == 1 and other.weights[1] == 0


def test_decisions_outside_the_loop_do_not_move_the_means(network: nn.Module, batch: Batch) -> None:
    state = InstantState(PLAN, 1, 3, 8)
    before = state.alignment.p_model.clone()
    decision, transition = decide(state, network(batch.weak), batch.weak)
    assert torch.equal(before, state.alignment.p_model)
    assert decision.pseudo.tolist() == [0, 1, 2, 0]
    assert transition.shape == (3, 3)
