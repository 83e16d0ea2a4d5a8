"""One network trained over several domains under a mask: the loop's inside, step by step (spec 2.10).

base objective's gradient -> gradients of masked weights to zero -> optimizer -> domain head on detached
features -> at the end of warm-up the first mask -> every delta steps an exchange by domain gradients
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewer.core.device import isolated_randomness, pick_dtype, seeded
from fewer.core.errors import DataError
from fewer.learn.domains.averaged import follow
from fewer.learn.domains.bases import (
    BaseResult,
    BaseState,
    DomainBatch,
    base_gradients,
    domain_losses,
    penalty_at,
    penalty_start,
)
from fewer.learn.domains.gradients import EPSILON, GradientAverage, first_score, variance_score
from fewer.learn.domains.masks import (
    Masks,
    apply_masks,
    clear_masked_state,
    exchange,
    exchange_fraction,
    forget_moments,
    kept_count,
    maskable_weights,
    top_mask,
)
from fewer.learn.domains.plan import InvariantPlan, mask_policy
from fewer.learn.graphed import GraphedFunction

RECORDABLE = ("erm", "irm", "vrex", "group-dro", "coral", "mmd", "fishr")
"""Bases whose gradient does not depend on numbers drawn on the host."""


class MaskedTraining:
    """Trains `network` (with `.features` and a linear `.classifier`) in place; call `step` once a batch.

    `masks` is empty during warm-up. Raises `DataError` for fewer than two source domains: a domain
    gradient needs something to tell apart.
    """

    def __init__(self, network: nn.Module, plan: InvariantPlan, envs: int) -> None:
        if envs < 2:
            raise DataError(
                f"{envs} source domain is given; at least 2 are needed, so that a domain can be told from "
                "another (hold out one of three, or split your data by site)"
            )
        self.network, self.plan, self.envs = network, plan, envs
        self.policy = mask_policy(plan)
        self.device = next(network.parameters()).device
        self.names = maskable_weights(network, stem_dense=plan.stem_dense, norms=self.policy.masks_norms)
        parameters = dict(network.named_parameters())
        self.weights = {name: parameters[name] for name in self.names}
        self.masks: Masks = {}
        self.spare_masks: Masks = {}
        self.first_masks: Masks = {}
        self.updates: list[dict[str, float]] = []
        self.step_number = 0
        self.state = BaseState(envs).to(self.device)
        with isolated_randomness(plan.seed):
            self.head = nn.Linear(network.classifier.in_features, envs).to(self.device)  # pyright: ignore
        self.optimizer = self._adam()
        fused = self.device.type == "cuda" or None
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), lr=plan.rate, fused=fused)
        self.average = GradientAverage()
        self.smooth = copy.deepcopy(network) if plan.average is not None else None
        self.dtype = pick_dtype(plan.dtype, self.device)
        self.graphs: dict[tuple[object, ...], GraphedFunction] = {}

    def precision(self) -> torch.autocast:
        """The plan's dtype; without autocast's cache, because weights change and graphs are recorded."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled, cache_enabled=False)

    def _adam(self) -> torch.optim.Optimizer:
        rate, decay, fused = self.plan.rate, self.plan.weight_decay, self.device.type == "cuda"
        return torch.optim.Adam(self.network.parameters(), lr=rate, weight_decay=decay, fused=fused or None)

    def step(self, batch: DomainBatch, generator: torch.Generator) -> dict[str, float]:
        """One optimizer step on one batch of each source domain; returns the loss and the kept share.

        Raises `DataError` when the loss is not finite; the weights are then those before the step.
        """
        if self.starts_late:
            self.optimizer = self._adam()
        with self.precision():
            return self._step(batch, generator)

    def _step(self, batch: DomainBatch, generator: torch.Generator) -> dict[str, float]:
        gathers = self._gathers(self.masked_step)
        replayed = self.device.type == "cuda" and not gathers and self.plan.base in RECORDABLE
        if replayed:
            result = self._replayed(batch)
        else:
            self.network.zero_grad(set_to_none=True)
            result = self._gradients(batch, generator, keep_graph=gathers)
        loss = float(result.loss)
        if not math.isfinite(loss):
            raise DataError(
                f"the loss is {loss} at step {self.step_number}; try a lower learning rate or penalty"
            )
        self._move(batch, result, masked=replayed)
        self.finish_step()
        return {"loss": loss}

    @property
    def masked_step(self) -> int:
        """Steps since the first mask; negative during warm-up."""
        return self.step_number - self.policy.warmup

    @property
    def starts_late(self) -> bool:
        """Whether the full penalty sets in now: a jump of the loss makes Adam's moments meaningless."""
        return self.step_number > 0 and self.step_number == penalty_start(self.plan)

    def form(self) -> tuple[object, ...]:
        """What the work of the step that comes next depends on, apart from tensors: two steps of one form
        launch the same kernels on the same memory."""
        plan, at = self.plan, self.masked_step
        masks = (bool(self.masks), self.policy.clears_moments)
        learns = self._needs_features(gathers=False) and self.policy.score != "covariance"
        return (plan.base, penalty_at(plan, self.step_number), masks, learns, at <= 0, *self.kinds(at))

    def whole_step(self, batch: DomainBatch) -> Tensor:
        """A step without a look at its loss, which is returned: nothing waits for the device, so it can be
        recorded (for the bases in `RECORDABLE`). `finish_step` then does what is not the device's."""
        with self.precision():
            self.network.zero_grad(set_to_none=True)
            result = self._gradients(batch, torch.Generator(), keep_graph=self._gathers(self.masked_step))
            self._move(batch, result)
        return result.loss

    def finish_step(self) -> None:
        """Changes the masks where it is their time, and counts the step."""
        self._change_masks(self.masked_step)
        self.step_number += 1

    def _move(self, batch: DomainBatch, result: BaseResult, *, masked: bool = False) -> None:
        """What follows the gradients of the base, up to the change of masks; `masked`: these are masked."""
        gathers, features = self._gathers(self.masked_step), result.features
        if features is None and self._needs_features(gathers):
            features = self.network.features(batch.images)  # pyright: ignore[reportCallIssue]
        if gathers:
            self._gather(batch, features, self.masked_step)
        if not masked:
            self._mask_gradients()
        self.optimizer.step()
        if self.masks and not self.policy.clears_moments:
            apply_masks(self.network, self.masks)  # Adam's kept moments have moved masked weights
        if features is not None:
            self._train_head(features, batch)
        if self.smooth is not None:
            assert self.plan.average is not None
            follow(self.smooth, self.network, self.plan.average)

    def judged(self) -> nn.Module:
        """The network that counts: the averaged one, where there is one, under the present masks."""
        return self.network if self.smooth is None else apply_masks(self.smooth, self.masks)

    def _gradients(
        self, batch: DomainBatch, generator: torch.Generator, *, keep_graph: bool = False
    ) -> BaseResult:
        return base_gradients(
            self.network,
            batch,
            self.plan,
            self.state,
            self.masks,
            self.step_number,
            generator,
            keep_graph=keep_graph,
        )

    def _mask_gradients(self) -> None:
        for name, mask in self.masks.items():
            gradient = self.weights[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    def _replayed(self, batch: DomainBatch) -> BaseResult:
        """The masked gradients of the base objective from a CUDA graph; masks are read where they lie, so
        that an exchange needs no new graph."""
        parameters = list(self.network.parameters())

        def whole(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
            self.network.zero_grad(set_to_none=True)
            result = self._gradients(DomainBatch(images, labels, batch.sizes), torch.Generator())
            self._mask_gradients()
            features = None if result.features is None else result.features.detach()
            return result.loss, features, [parameter.grad for parameter in parameters]

        key = (batch.sizes, bool(self.masks), penalty_at(self.plan, self.step_number))
        if key not in self.graphs:
            buffers = [*self.network.buffers(), *self.state.buffers()]
            self.graphs[key] = GraphedFunction(whole, protects=buffers)
        loss, features, gradients = self.graphs[key](batch.images, batch.labels)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return BaseResult(loss, features)

    def _needs_features(self, gathers: bool) -> bool:
        return gathers or (self.policy.head_learns and self.plan.method == "evil")

    def _gathers(self, masked_step: int) -> bool:
        if self.plan.method == "none":
            return False
        before_first = -self.policy.accumulation < masked_step <= 0
        needs_scores = self.policy.first in ("sensitivity", "fisher", "domain-fisher")
        return (before_first and needs_scores) or self.policy.gathers_at(masked_step)

    def kinds(self, masked_step: int) -> tuple[str, ...]:
        """Which gradients the step adds to the average: `task`, `domain`, `env<e>`."""
        if not self._gathers(masked_step):
            return ()
        score, first = self.policy.score, masked_step <= 0
        last = self.policy.updates_at(masked_step)
        kinds = ["task"] if first or score in ("task", "mixed") else []
        if (first and self.policy.first == "domain-fisher") or (
            not first and (score == "domain" or (score == "mixed" and last))
        ):
            kinds.append("domain")
        elif not first and score == "covariance":
            kinds += [f"env{env}" for env in range(self.envs)]
        return tuple(kinds)

    def _gather(self, batch: DomainBatch, features: Tensor | None, masked_step: int) -> None:
        """Adds this batch's dense gradients, at the weights that the batch was seen with."""
        kinds, first = self.kinds(masked_step), masked_step <= 0
        weights = list(self.weights.values())
        if "task" in kinds:
            gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            self.average.add("task", self.names, gradients, squares=first)
        assert features is not None
        if "domain" in kinds:
            loss = F.cross_entropy(self.head(features), batch.domains)
            self.average.add("domain", self.names, torch.autograd.grad(loss, weights), squares=first)
        elif "env0" in kinds:
            losses = domain_losses(self.network.classifier(features), batch)  # pyright: ignore
            for env, loss in enumerate(losses):
                last_env = env == self.envs - 1
                self.average.add(
                    f"env{env}", self.names, torch.autograd.grad(loss, weights, retain_graph=not last_env)
                )

    def _train_head(self, features: Tensor, batch: DomainBatch) -> None:
        """The domain classifier learns on detached features; it never moves the feature extractor."""
        if not self.policy.head_learns or self.plan.method != "evil" or self.policy.score == "covariance":
            return
        self.head_optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.head(features.detach()), batch.domains).backward()
        self.head_optimizer.step()

    def _change_masks(self, masked_step: int) -> None:
        if self.plan.method == "none":
            return
        if masked_step == 0:
            self._first_masks()
        elif self.policy.updates_at(masked_step):
            self._exchange(masked_step)

    def _first_masks(self) -> None:
        density = self.plan.density
        if self.plan.mode == "tmllab" and self.policy.first == "random":
            density = 1 - density  # the released code's `random` keeps what the others drop
        for number, (name, weight) in enumerate(self.weights.items()):
            generator = seeded(self.plan.seed, 31, number)
            score = first_score(self.average, name, weight, self.policy.first, generator)
            mask = top_mask(score, weight.detach(), kept_count(weight.numel(), density))
            # A training that was started afresh keeps its masks where they lie.
            self.masks[name] = self.spare_masks.setdefault(name, mask).copy_(mask)
        self.first_masks = {name: mask.clone() for name, mask in self.masks.items()}
        self._settle()

    def _exchange(self, masked_step: int) -> None:
        fraction = exchange_fraction(masked_step, self.plan.alpha, self.policy.end)
        dropped, moved = 0, 0
        for name, weight in self.weights.items():
            variance = variance_score(self.average, name, self.policy.score, self.envs)
            magnitude = weight.detach().abs()
            keep = {
                "magnitude": magnitude,
                "domain": -variance,
                "magnitude/domain": magnitude / (variance / variance.mean().clamp(min=1e-30) + EPSILON),
            }[self.policy.drop]
            grow = variance if self.policy.grows_largest else -variance
            new = exchange(
                self.masks[name], weight.detach(), keep, grow, fraction, guard=self.policy.drop != "magnitude"
            )
            moved += int((new & ~self.masks[name]).sum())
            dropped += int(new.numel())
            self.masks[name].copy_(new)
        self.updates.append(
            {"step": float(self.step_number), "fraction": fraction, "changed": moved / dropped}
        )
        self._settle()

    def _settle(self) -> None:
        apply_masks(self.network, self.masks)
        if self.policy.clears_moments:
            clear_masked_state(self.optimizer, self.network, self.masks)
        self.average.forget()

    @torch.no_grad()
    def restart(self, network: nn.Module, plan: InvariantPlan) -> None:
        """The start of another run in the tensors of this one, so that what was recorded stays right.

        `network` has the weights to start with; its plan may differ in what is drawn, masked and gathered,
        not in the network or the optimizer."""
        self.plan, self.policy = plan, mask_policy(plan)
        for name, value in self.network.state_dict().items():
            value.copy_(network.state_dict()[name])
        if self.smooth is not None:
            self.smooth.load_state_dict(network.state_dict())
        self.state.group_weights.copy_(BaseState(self.envs).group_weights)
        with isolated_randomness(plan.seed):
            head = nn.Linear(self.head.in_features, self.envs)
        self.head.load_state_dict(head.state_dict())
        for optimizer in (self.optimizer, self.head_optimizer):
            forget_moments(optimizer)
        self.average.forget()
        self.masks, self.first_masks, self.updates, self.step_number = {}, {}, [], 0
