"""MixMatch (Berthelot et al. 2019): guessed labels, sharpened and mixed with the labelled images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.thresholds.batch import Batch, Outcome, forward_together, frozen_statistics, outcome

SHARPENING = 0.5
ALPHA = 0.5
UNLABELLED_WEIGHT = 100.0  # on a mean squared error, which is small
RISE = 0.4  # share of a long run over which that weight rises
RISE_STEPS = 16_384  # in a short run it rises as slowly as in the published ones


def mixmatch(network: nn.Module, batch: Batch, state: nn.Module, plan: SemiSupervisedPlan) -> Outcome:
    """Cross-entropy on mixed labelled images, squared error to mixed guesses on the unlabelled ones.

    The weight of the latter rises over the first 16,384 steps (paper, section 4; later code: 40 % of 2^20).
    A weight of 100 before the labels are learnt ends with one class for all images, which costs it nothing.
    """
    assert batch.again is not None
    with torch.no_grad(), frozen_statistics(network):
        first, second = forward_together(network, batch.weak, batch.again)
        guess = (first.softmax(1) + second.softmax(1)) / 2
    confidence, pseudo = guess.max(1)
    sharp = guess ** (1 / SHARPENING)
    sharp = sharp / sharp.sum(1, keepdim=True)
    images = torch.cat([batch.labelled, batch.weak, batch.again])
    targets = torch.cat([F.one_hot(batch.labels, guess.shape[1]).float(), sharp, sharp])
    share = mixing_share(batch.generator)
    order = torch.randperm(len(images), generator=batch.generator).to(images.device)
    mixed = share * images + (1 - share) * images[order]
    mixed_targets = share * targets + (1 - share) * targets[order]
    logits = network(mixed).float()
    count = len(batch.labels)
    supervised = F.cross_entropy(logits[:count], mixed_targets[:count])
    squared = ((logits[count:].softmax(1) - mixed_targets[count:]) ** 2).mean()
    rise = min(1.0, batch.progress * plan.steps / max(RISE * plan.steps, RISE_STEPS))
    everything = torch.ones(len(pseudo), device=logits.device)
    return outcome(
        supervised,
        rise * UNLABELLED_WEIGHT * squared,
        plan.unlabelled_weight,
        everything,
        0.0,
        confidence,
        pseudo,
    )


def mixing_share(generator: torch.Generator) -> float:
    """max(l, 1 - l) of l ~ Beta(0.5, 0.5): the first image always has the larger share."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    drawn = float(np.random.default_rng(seed).beta(ALPHA, ALPHA))
    return max(drawn, 1 - drawn)
