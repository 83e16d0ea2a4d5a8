"""Methods with one threshold for all images: labels only, Pseudo-Label, UDA, FixMatch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.thresholds.batch import Batch, Outcome, forward_together, outcome, weighted_cross_entropy


def labels_only(network: nn.Module, batch: Batch, state: nn.Module, plan: SemiSupervisedPlan) -> Outcome:
    """Cross-entropy on the labelled images; the unlabelled ones are not looked at."""
    logits = network(batch.labelled).float()
    supervised = F.cross_entropy(logits, batch.labels)
    none = torch.zeros(len(batch.rows), device=logits.device)
    return outcome(supervised, supervised.new_zeros(()), 0.0, none, 1.0, none, none.long())


def pseudo_label(network: nn.Module, batch: Batch, state: nn.Module, plan: SemiSupervisedPlan) -> Outcome:
    """Lee 2013: the label that the weak view gets, if its probability is >= 0.95, trains the same view.

    The unlabelled weight rises linearly over the first 40 % of the run.
    """
    labelled, weak = forward_together(network, batch.labelled, batch.weak)
    confidence, pseudo = weak.detach().softmax(1).max(1)
    cutoff = plan.cutoff or 0.95
    weights = (confidence >= cutoff).float()
    supervised = F.cross_entropy(labelled, batch.labels)
    rise = min(1.0, batch.progress / 0.4)
    unsupervised = rise * weighted_cross_entropy(weak, pseudo, weights)
    return outcome(supervised, unsupervised, plan.unlabelled_weight, weights, cutoff, confidence, pseudo)


def uda(network: nn.Module, batch: Batch, state: nn.Module, plan: SemiSupervisedPlan) -> Outcome:
    """Xie et al. 2020: soft targets sharpened with temperature 0.4, threshold 0.8 on the unsharpened."""
    labelled, weak, strong = forward_together(network, batch.labelled, batch.weak, batch.strong)
    weak = weak.detach()
    confidence, pseudo = weak.softmax(1).max(1)
    cutoff = plan.cutoff or 0.8
    weights = (confidence >= cutoff).float()
    supervised = F.cross_entropy(labelled, batch.labels)
    unsupervised = weighted_cross_entropy(strong, (weak / 0.4).softmax(1), weights)
    return outcome(supervised, unsupervised, plan.unlabelled_weight, weights, cutoff, confidence, pseudo)


def fixmatch(network: nn.Module, batch: Batch, state: nn.Module, plan: SemiSupervisedPlan) -> Outcome:
    """Sohn et al. 2020: the weak view's label, if its probability is >= 0.95, trains the strong view."""
    labelled, weak, strong = forward_together(network, batch.labelled, batch.weak, batch.strong)
    confidence, pseudo = weak.detach().softmax(1).max(1)
    cutoff = plan.cutoff or 0.95
    weights = (confidence >= cutoff).float()
    supervised = F.cross_entropy(labelled, batch.labels)
    unsupervised = weighted_cross_entropy(strong, pseudo, weights)
    return outcome(supervised, unsupervised, plan.unlabelled_weight, weights, cutoff, confidence, pseudo)


def no_state(plan: SemiSupervisedPlan, channels: int, classes: int, unlabelled: int) -> nn.Module:
    """These methods remember nothing between steps."""
    return nn.Module()


def normalised(values: Tensor) -> Tensor:
    """Scaled so that the last axis sums to 1."""
    return values / values.sum(-1, keepdim=True)
