"""InstanT as a training method: the threshold of `instance.py` with T trained along (arXiv 2310.18910)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.thresholds.alignment import DistributionAlignment
from fewer.learn.thresholds.batch import Batch, Outcome, forward_together, frozen_statistics, outcome
from fewer.learn.thresholds.instance import Decision, InstanceThreshold, Transition, base_threshold
from fewer.learn.thresholds.transition import (
    ClassTransition,
    CountedTransition,
    InstanceTransition,
    forward_corrected_loss,
    labelled_row_loss,
)


class InstantState(nn.Module):
    """Distribution alignment, the transition estimator, and the threshold's constants."""

    def __init__(self, plan: SemiSupervisedPlan, channels: int, classes: int, unlabelled: int) -> None:
        super().__init__()
        self.alignment = DistributionAlignment(classes, plan.running_momentum())
        self.transition: nn.Module
        if plan.estimation == "class":
            self.transition = ClassTransition(
                classes, plan.transition_scale or (5.0 if classes < 50 else 10.0)
            )
        elif plan.estimation in ("counted", "recounted"):
            self.transition = CountedTransition(classes, plan.running_momentum())
        else:
            self.transition = InstanceTransition(
                channels, classes, plan.transition_scale or 1.0, body=plan.transition_body
            )
        self.threshold = InstanceThreshold(
            classes=classes,
            cutoff=plan.cutoff or 0.9,
            temperature=plan.threshold_temperature,
            posterior=plan.posterior,
            compare=plan.compare,
            check=False,
        )


def instant(network: nn.Module, batch: Batch, state: InstantState, plan: SemiSupervisedPlan) -> Outcome:
    """One step of InstanT; before `warm_up` of the run the threshold is its base alone and T rests."""
    labelled, weak, strong = forward_together(network, batch.labelled, batch.weak, batch.strong)
    known, raw = labelled.detach().softmax(1), weak.detach().softmax(1)
    state.alignment.update(raw, known)
    probabilities = state.alignment(raw)
    if plan.estimation == "counted":
        state.transition.update(batch.labels, state.alignment(known))
    supervised = F.cross_entropy(labelled, batch.labels)
    if batch.progress < plan.warm_up:
        confidence, pseudo = probabilities.max(1)
        threshold = base_threshold(probabilities, state.threshold.cutoff).clamp(max=state.threshold.clip)
        weights = (confidence >= threshold).float()
        losses = F.cross_entropy(strong, pseudo, reduction="none")
        unsupervised = (losses * weights).mean()
        return outcome(
            supervised, unsupervised, plan.unlabelled_weight, weights, threshold, confidence, pseudo
        )
    transition = state.transition(batch.weak)
    others = None
    if plan.other_views() and batch.again is not None:
        others = _from_views(network, batch.again, state, len(probabilities))
    decision = state.threshold(probabilities, transition.detach(), others)
    weights = decision.mask.float()
    # Estimated from labelled rows, T is not also pulled by the unlabelled loss.
    used = transition.detach() if plan.estimation == "labelled-row" else transition
    unsupervised = (forward_corrected_loss(strong, used, decision.pseudo) * weights).mean()
    if plan.estimation == "labelled-row":
        supervised = supervised + labelled_row_loss(state.transition(batch.labelled), batch.labels, known)
    confidence = probabilities.max(1).values
    return outcome(
        supervised,
        unsupervised,
        plan.unlabelled_weight,
        weights,
        decision.threshold,
        confidence,
        decision.pseudo,
    )


@torch.no_grad()
def _from_views(network: nn.Module, images: Tensor, state: InstantState, count: int) -> Tensor:
    """The mean aligned answer over whole rounds of views of the same `count` pictures."""
    with frozen_statistics(network):
        answers = state.alignment(network(images).float().softmax(1))
    return answers.unflatten(0, (-1, count)).mean(0)


@torch.no_grad()
def recount(
    network: nn.Module,
    state: InstantState,
    images: Float[Tensor, "batch channels height width"],
    labels: Int64[Tensor, " batch"],
) -> None:
    """T from the network's present answers for labelled images: row y is their mean over class y.

    That is where a class-level T that is taught by the labelled rows (`labelled_row_loss`) ends. The network
    answers as it is used, with its running statistics; what it answered earlier is forgotten.
    """
    was_training = network.training
    answers = state.alignment(network.eval()(images).float().softmax(1))
    network.train(was_training)
    assert isinstance(state.transition, CountedTransition)
    state.transition.count_anew(labels, answers)


@torch.no_grad()
def decide(state: InstantState, logits: torch.Tensor, images: torch.Tensor) -> tuple[Decision, Transition]:
    """The threshold of trained `state` for images outside the loop (alignment is not updated)."""
    transition = state.transition(images)
    return state.threshold(state.alignment(logits.softmax(1)), transition), transition
