import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.thresholds.adaptive import (
    AdaMatchState,
    FlexMatchState,
    FreeMatchState,
    SoftMatchState,
    adamatch,
    fairness_loss,
    flexmatch,
    freematch,
    softmatch,
)
from fewer.learn.thresholds.batch import Batch

PLAN = SemiSupervisedPlan(running=0.9)


def test_flexmatch_starts_open_and_learns_classes(network: nn.Module, batch: Batch) -> None:
    state = FlexMatchState(PLAN, 1, 3, 8)
    first = flexmatch(network, batch, state, PLAN)
    assert first.weights.tolist() == [1, 1, 1, 1]  # nothing learnt: threshold 0
    assert state.selected.tolist() == [-1, -1, 1, -1, -1, 0, -1, -1]
    # Six images without a class are the largest count.
    torch.testing.assert_close(state.learnt, torch.tensor([1 / 6, 1 / 6, 0]))
    second = flexmatch(network, batch, state, PLAN)
    assert float(second.threshold[0]) == pytest.approx(0.95 * (1 / 6) / (2 - 1 / 6))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_flexmatch_keeps_what_any_view_of_a_picture_was_sure_of(order: list[int]) -> None:
    state = FlexMatchState(PLAN, 1, 3, 4)
    rows, pseudo = torch.tensor([3, 3, 0])[order], torch.tensor([2, 1, 0])[order]
    state.update(rows, pseudo, torch.tensor([True, False, False])[order])
    assert state.selected.tolist() == [-1, -1, -1, 2]
    state.update(rows, pseudo, torch.tensor([False, False, False]))
    assert state.selected.tolist() == [-1, -1, -1, 2]


def test_freematch_by_hand(network: nn.Module, batch: Batch) -> None:
    state = FreeMatchState(PLAN, 1, 3, 8)
    got = freematch(network, batch, state, PLAN)
    p = batch.weak.flatten(1)[:, :3].softmax(1)
    confidence = 0.9 / 3 + 0.1 * p.max(1).values.mean()
    mean = 0.9 / 3 + 0.1 * p.mean(0)
    expected = confidence * (mean / mean.max())[torch.tensor([0, 1, 2, 0])]
    torch.testing.assert_close(got.threshold, expected)
    torch.testing.assert_close(state.histogram, 0.3 + 0.1 * torch.tensor([0.5, 0.25, 0.25]))


def test_fairness_prefers_spread_answers() -> None:
    uniform = torch.full((3,), 1 / 3)
    strong = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    spread = fairness_loss(strong, torch.ones(3), uniform, uniform)
    assert float(spread) == pytest.approx(-math.log(3), abs=1e-5)
    assert float(fairness_loss(strong, torch.zeros(3), uniform, uniform)) == 0


def test_softmatch_by_hand(network: nn.Module, batch: Batch) -> None:
    state = SoftMatchState(PLAN, 1, 3, 8)
    got = softmatch(network, batch, state, PLAN)
    c = got.confidence
    mean, variance = 0.9 / 3 + 0.1 * c.mean(), 0.9 + 0.1 * c.var()
    expected = (-((c - mean).clamp(max=0) ** 2) / (2 * variance / 4)).exp()
    torch.testing.assert_close(got.weights, expected)
    assert got.weights.max() == 1


def test_adamatch_threshold_follows_the_labelled_batch(network: nn.Module, batch: Batch) -> None:
    got = adamatch(network, batch, AdaMatchState(PLAN, 1, 3, 8), PLAN)
    known = math.exp(2) / (math.exp(2) + 2)
    torch.testing.assert_close(got.threshold, torch.full((4,), 0.9 * known))
    unsure = replace(batch, labelled=batch.labelled * 0)
    assert (adamatch(network, unsure, AdaMatchState(PLAN, 1, 3, 8), PLAN).threshold < got.threshold).all()


@pytest.mark.parametrize("kind", [FlexMatchState, FreeMatchState, SoftMatchState, AdaMatchState])
def test_states_have_buffers_only(kind: type[nn.Module]) -> None:
    state = kind(PLAN, 1, 3, 8)
    assert list(state.parameters()) == []
    assert len(state.state_dict()) >= 2
