from dataclasses import replace

import torch
from torch import nn

from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.thresholds.batch import Batch
from fewer.learn.thresholds.mixmatch import mixing_share, mixmatch

PLAN = SemiSupervisedPlan(steps=100_000)


def test_shares_favour_the_first_image() -> None:
    shares = [mixing_share(torch.Generator().manual_seed(s)) for s in range(200)]
    assert min(shares) >= 0.5
    assert max(shares) <= 1
    assert 0.75 < sum(shares) / 200 < 0.9  # mean of max(l, 1-l) for Beta(.5, .5) is 1/2 + 1/pi = 0.818


def test_every_image_is_used_and_the_weight_rises(network: nn.Module, batch: Batch) -> None:
    def at(progress: float) -> torch.Tensor:
        fresh = replace(batch, progress=progress, generator=torch.Generator().manual_seed(1))
        result = mixmatch(network, fresh, nn.Module(), PLAN)
        assert result.weights.tolist() == [1, 1, 1, 1]
        return result.unsupervised

    torch.testing.assert_close(at(0.2), at(0.4) / 2)
    torch.testing.assert_close(at(0.9), at(0.4))
    assert at(0.0) == 0


def test_in_a_short_run_the_weight_rises_as_slowly_as_in_a_long_one(network: nn.Module, batch: Batch) -> None:
    """After 150 of 150 steps it is what it is after 150 of 16,384; at full weight one class swallows all."""

    def after(steps: int, of: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        fresh = replace(batch, progress=steps / of, generator=generator)
        return mixmatch(network, fresh, nn.Module(), replace(PLAN, steps=of)).unsupervised

    torch.testing.assert_close(after(150, 150), after(150, 16_384))
    torch.testing.assert_close(after(16_384, 16_384), after(100_000, 100_000))
    torch.testing.assert_close(after(150, 150), after(16_384, 16_384) * 150 / 16_384)


def test_pseudo_labels_are_those_of_the_mean_of_two_views(network: nn.Module, batch: Batch) -> None:
    assert mixmatch(network, batch, nn.Module(), PLAN).pseudo.tolist() == [0, 1, 2, 0]
