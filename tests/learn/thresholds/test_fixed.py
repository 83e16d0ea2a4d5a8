from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.thresholds.batch import Batch
from fewer.learn.thresholds.fixed import fixmatch, labels_only, normalised, pseudo_label, uda

PLAN = SemiSupervisedPlan()
NONE = nn.Module()


def test_fixmatch_by_hand(network: nn.Module, batch: Batch) -> None:
    got = fixmatch(network, batch, NONE, PLAN)
    assert got.weights.tolist() == [1, 1, 0, 0]
    assert got.pseudo.tolist() == [0, 1, 2, 0]
    strong = batch.strong.flatten(1)[:, :3]
    expected = F.cross_entropy(strong[:2], torch.tensor([0, 1]), reduction="sum") / 4
    torch.testing.assert_close(got.unsupervised, expected)
    torch.testing.assert_close(got.loss, got.supervised + expected)


def test_cutoff_and_weight_are_settings(network: nn.Module, batch: Batch) -> None:
    got = fixmatch(network, batch, NONE, replace(PLAN, cutoff=0.8, unlabelled_weight=3.0))
    assert got.weights.tolist() == [1, 1, 1, 0]
    torch.testing.assert_close(got.loss, got.supervised + 3 * got.unsupervised)


def test_uda_sharpens_and_keeps_soft_targets(network: nn.Module, batch: Batch) -> None:
    got = uda(network, batch, NONE, PLAN)
    assert got.weights.tolist() == [1, 1, 1, 0]
    weak, strong = (view.flatten(1)[:, :3] for view in (batch.weak, batch.strong))
    target = (weak / 0.4).softmax(1)
    expected = -(target * strong.log_softmax(1)).sum(1)[:3].sum() / 4
    torch.testing.assert_close(got.unsupervised, expected)


def test_pseudo_label_trains_the_weak_view_with_a_rising_weight(network: nn.Module, batch: Batch) -> None:
    full = pseudo_label(network, replace(batch, progress=0.4), NONE, PLAN).unsupervised
    half = pseudo_label(network, replace(batch, progress=0.2), NONE, PLAN).unsupervised
    assert full > 0
    torch.testing.assert_close(half, full / 2)


def test_labels_only_is_cross_entropy(network: nn.Module, batch: Batch) -> None:
    got = labels_only(network, batch, NONE, PLAN)
    torch.testing.assert_close(got.loss, F.cross_entropy(network(batch.labelled), batch.labels))
    assert got.weights.sum() == 0


@pytest.mark.parametrize("method", [fixmatch, uda])
def test_the_weak_view_gets_no_gradient(method: object, network: nn.Module, batch: Batch) -> None:
    weak = batch.weak.clone().requires_grad_()
    method(network, replace(batch, weak=weak), NONE, PLAN).loss.backward()  # pyright: ignore
    assert weak.grad is None or weak.grad.abs().max() == 0


def test_normalised() -> None:
    assert normalised(torch.tensor([1.0, 3.0])).tolist() == [0.25, 0.75]
