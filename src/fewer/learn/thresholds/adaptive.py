"""Methods whose threshold follows the run: FlexMatch and FreeMatch (a class each), SoftMatch (a weight
instead of a threshold), AdaMatch (relative to the labelled batch). Running state lives in buffers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.thresholds.alignment import DistributionAlignment
from fewer.learn.thresholds.batch import Batch, Outcome, forward_together, outcome, weighted_cross_entropy
from fewer.learn.thresholds.fixed import normalised


class FlexMatchState(nn.Module):
    """For each image the class it was last confidently given (-1: none), and how far each class is learnt."""

    selected: Tensor
    learnt: Tensor

    def __init__(self, plan: SemiSupervisedPlan, channels: int, classes: int, unlabelled: int) -> None:
        super().__init__()
        self.register_buffer("selected", torch.full((unlabelled,), -1))
        self.register_buffer("learnt", torch.zeros(classes))

    @torch.no_grad()
    def update(self, rows: Tensor, pseudo: Tensor, confident: Tensor) -> None:
        # A picture drawn twice keeps the class that any of its views was sure of.
        sure = torch.where(confident, pseudo, -1)
        seen = torch.full_like(self.selected, -1).scatter_reduce(0, rows, sure, "amax")
        self.selected.copy_(torch.where(seen >= 0, seen, self.selected))
        counts = torch.bincount(self.selected + 1, minlength=len(self.learnt) + 1).float()
        # Images without a class count as a class of their own (the paper's threshold warm-up).
        self.learnt.copy_(counts[1:] / counts.max())


def flexmatch(network: nn.Module, batch: Batch, state: FlexMatchState, plan: SemiSupervisedPlan) -> Outcome:
    """Zhang et al. 2021: threshold 0.95 * learnt / (2 - learnt) for each class."""
    labelled, weak, strong = forward_together(network, batch.labelled, batch.weak, batch.strong)
    confidence, pseudo = weak.detach().softmax(1).max(1)
    cutoff = plan.cutoff or 0.95
    learnt = state.learnt[pseudo]
    threshold = cutoff * learnt / (2 - learnt)
    weights = (confidence >= threshold).float()
    state.update(batch.rows, pseudo, confidence >= cutoff)
    supervised = F.cross_entropy(labelled, batch.labels)
    unsupervised = weighted_cross_entropy(strong, pseudo, weights)
    return outcome(supervised, unsupervised, plan.unlabelled_weight, weights, threshold, confidence, pseudo)


class FreeMatchState(nn.Module):
    """Running mean confidence, mean answer and histogram of pseudo-labels."""

    confidence: Tensor
    mean: Tensor
    histogram: Tensor

    def __init__(self, plan: SemiSupervisedPlan, channels: int, classes: int, unlabelled: int) -> None:
        super().__init__()
        self.momentum = plan.running_momentum()
        self.register_buffer("confidence", torch.tensor(1.0 / classes))
        self.register_buffer("mean", torch.full((classes,), 1.0 / classes))
        self.register_buffer("histogram", torch.full((classes,), 1.0 / classes))

    @torch.no_grad()
    def update(self, probabilities: Tensor) -> None:
        confidence, pseudo = probabilities.max(1)
        counts = torch.bincount(pseudo, minlength=len(self.mean)).float()
        self.confidence.lerp_(confidence.mean(), 1 - self.momentum)
        self.mean.lerp_(probabilities.mean(0), 1 - self.momentum)
        self.histogram.lerp_(counts / len(pseudo), 1 - self.momentum)


FAIRNESS_WEIGHT = 0.01  # FreeMatch's w_f for CIFAR-10


def freematch(network: nn.Module, batch: Batch, state: FreeMatchState, plan: SemiSupervisedPlan) -> Outcome:
    """Wang et al. 2023: threshold = mean confidence * class mean / largest class mean, plus fairness."""
    labelled, weak, strong = forward_together(network, batch.labelled, batch.weak, batch.strong)
    probabilities = weak.detach().softmax(1)
    confidence, pseudo = probabilities.max(1)
    state.update(probabilities)
    threshold = state.confidence * (state.mean / state.mean.max())[pseudo]
    weights = (confidence >= threshold).float()
    supervised = F.cross_entropy(labelled, batch.labels)
    unsupervised = weighted_cross_entropy(strong, pseudo, weights)
    fairness = fairness_loss(strong.softmax(1), weights, state.mean, state.histogram)
    result = outcome(supervised, unsupervised, plan.unlabelled_weight, weights, threshold, confidence, pseudo)
    return result._replace(loss=result.loss + FAIRNESS_WEIGHT * fairness)


def fairness_loss(
    strong: Float[Tensor, "batch classes"],
    weights: Float[Tensor, " batch"],
    mean: Float[Tensor, " classes"],
    histogram: Float[Tensor, " classes"],
) -> Float[Tensor, ""]:
    """FreeMatch equation 11: sum_c norm(mean / histogram)_c log norm(mean_strong / histogram_strong)_c.

    Over accepted images only; 0 when none is accepted. A class that no image got has 1/histogram = 1.
    """
    count = weights.sum().clamp(min=1)
    mean_strong = (strong * weights[:, None]).sum(0) / count
    counts = torch.zeros_like(mean).index_add(0, strong.argmax(1), weights) / count
    expected = normalised(mean / torch.where(histogram > 0, histogram, 1.0))
    found = normalised(mean_strong / torch.where(counts > 0, counts, 1.0) + 1e-12)
    return (expected * (found + 1e-12).log()).sum() * (weights.sum() > 0)


class SoftMatchState(nn.Module):
    """Uniform alignment, and the running mean and variance of the confidence."""

    mean: Tensor
    variance: Tensor

    def __init__(self, plan: SemiSupervisedPlan, channels: int, classes: int, unlabelled: int) -> None:
        super().__init__()
        self.momentum = plan.running_momentum()
        self.alignment = DistributionAlignment(classes, self.momentum, uniform=True)
        self.register_buffer("mean", torch.tensor(1.0 / classes))
        self.register_buffer("variance", torch.tensor(1.0))

    @torch.no_grad()
    def update(self, confidence: Tensor) -> None:
        self.mean.lerp_(confidence.mean(), 1 - self.momentum)
        self.variance.lerp_(confidence.var(correction=min(1, len(confidence) - 1)), 1 - self.momentum)


def softmatch(network: nn.Module, batch: Batch, state: SoftMatchState, plan: SemiSupervisedPlan) -> Outcome:
    """Chen et al. 2023: weight exp(-(min(p - mean, 0))^2 / (2 variance / 4)), a truncated Gaussian."""
    labelled, weak, strong = forward_together(network, batch.labelled, batch.weak, batch.strong)
    probabilities = weak.detach().softmax(1)
    state.alignment.update(probabilities, labelled.detach().softmax(1))
    confidence, pseudo = state.alignment(probabilities).max(1)
    state.update(confidence)
    below = (confidence - state.mean).clamp(max=0)
    weights = (-(below**2) / (2 * state.variance / 4)).exp()
    supervised = F.cross_entropy(labelled, batch.labels)
    unsupervised = weighted_cross_entropy(strong, pseudo, weights)
    return outcome(
        supervised, unsupervised, plan.unlabelled_weight, weights, state.mean.clone(), confidence, pseudo
    )


class AdaMatchState(nn.Module):
    """Alignment towards the labelled batch."""

    def __init__(self, plan: SemiSupervisedPlan, channels: int, classes: int, unlabelled: int) -> None:
        super().__init__()
        self.alignment = DistributionAlignment(classes, plan.running_momentum())


def adamatch(network: nn.Module, batch: Batch, state: AdaMatchState, plan: SemiSupervisedPlan) -> Outcome:
    """Berthelot et al. 2022 (one domain): threshold 0.9 * mean confidence on the labelled batch."""
    labelled, weak, strong = forward_together(network, batch.labelled, batch.weak, batch.strong)
    known = labelled.detach().softmax(1)
    probabilities = weak.detach().softmax(1)
    state.alignment.update(probabilities, known)
    confidence, pseudo = state.alignment(probabilities).max(1)
    threshold = (plan.cutoff or 0.9) * known.max(1).values.mean()
    weights = (confidence >= threshold).float()
    supervised = F.cross_entropy(labelled, batch.labels)
    unsupervised = weighted_cross_entropy(strong, pseudo, weights)
    return outcome(supervised, unsupervised, plan.unlabelled_weight, weights, threshold, confidence, pseudo)
