import torch
from torch import nn

from fewer.learn.thresholds.batch import (
    forward_together,
    frozen_statistics,
    outcome,
    weighted_cross_entropy,
)


def test_one_forward_pass_shows_batch_norm_everything() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4, affine=False))
    first, second = torch.randn(3, 1, 2, 2), torch.randn(5, 1, 2, 2) + 9
    views = forward_together(network, first, second)
    assert [len(view) for view in views] == [3, 5]
    torch.testing.assert_close(torch.cat(views).mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_refused_images_count_as_zero_in_the_mean() -> None:
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    one = nn.functional.cross_entropy(logits[:1], targets[:1])
    weights = torch.tensor([1.0, 0, 0, 0])
    torch.testing.assert_close(weighted_cross_entropy(logits, targets, weights), one / 4)


def test_outcome_spreads_one_threshold_and_keeps_gradient_only_in_the_loss() -> None:
    loss = torch.ones(2, requires_grad=True).sum()
    ones = torch.ones(3)
    result = outcome(loss, loss * 2, 0.5, ones, 0.95, ones, ones.long())
    assert float(result.loss.detach()) == 4
    assert result.threshold.shape == (3,)
    assert not result.weights.requires_grad


def test_frozen_statistics_are_not_changed_and_come_back() -> None:
    norm = nn.BatchNorm1d(2, momentum=0.3)
    with frozen_statistics(norm):
        norm(torch.randn(8, 2) + 5)
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert norm.momentum == 0.3
