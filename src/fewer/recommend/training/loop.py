"""Training to early stopping: one visible loop for every network of the room.

An epoch's batches, negatives and dropout are pure functions of (seed, epoch). A checkpoint is written at the
end of every epoch, so that a resumed run gives the same weights to the last bit.
"""

import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fewer.core.checkpoint import (
    copy_into,
    flatten_state,
    latest_checkpoint,
    save_checkpoint,
    unflatten_state,
)
from fewer.core.device import isolated_randomness, seeded
from fewer.core.errors import DataError
from fewer.core.progress import Progress, SilentProgress
from fewer.recommend.data.prefixes import Prefixes, Sequences
from fewer.recommend.data.splits import Split
from fewer.recommend.evaluate import evaluate
from fewer.recommend.training.encoders import LearnsFrom, NetworkScorer, item_table
from fewer.recommend.training.losses import LossName, next_item_loss
from fewer.recommend.training.recorded import RECORDABLE, RecordedSteps

logger = logging.getLogger(__name__)

FULL_SOFTMAX_LIMIT = 200_000  # items; above it full cross-entropy is replaced by sampled softmax
MASK_SHARE = 0.2  # BERT4Rec: share of a sequence that is hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How long and how to train."""

    loss: LossName = "cross-entropy"
    batch_size: Annotated[int, Field(ge=1)] = 1024
    """Pairs a step (prefix models)."""
    sequence_batch_size: Annotated[int, Field(ge=1)] = 128
    """Sequences a step (models that learn from all positions)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    epochs: Annotated[int, Field(ge=0)] = 200
    """At most this many."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Stop after so many epochs without a better validation NDCG@10."""
    cpu_seconds: float | None = None
    """Stop after so much processor time (fair between models on a shared machine)."""
    wall_seconds: float | None = None
    """Stop after the epoch in which so much time has passed since the start (a resumed run gets it anew)."""
    pairs_per_epoch: int | None = None
    """At most so many random (prefix, next item) pairs an epoch."""
    negatives: Annotated[int, Field(ge=1)] = 256
    validation_users: Annotated[int, Field(ge=1)] = 20_000
    """Early stopping looks at no more users than these."""
    graphs: bool = True
    """On a GPU, record the steps of full cross-entropy as CUDA graphs."""
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(slots=True)
class TrainingResult:
    """What training did; `path` has one entry an epoch."""

    best_epoch: int = -1
    best_ndcg: float = -1.0
    stopped: str = "epochs"
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    path: list[dict[str, float | int]] = field(default_factory=list)


def train_network(
    network: nn.Module,
    split: Split,
    plan: TrainingPlan,
    *,
    length: int,
    folder: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains in place and leaves the weights of the best validation epoch in `network`.

    Without validation targets (a deployment fit) all epochs run and the last weights stay. Raises
    `DataError` when there is nothing to learn from or the loss is no longer a number.
    """
    progress = progress or SilentProgress()
    if len(split.train) == 0:
        raise DataError("nothing to learn from: no user has two learnable interactions")
    plan = _fitting_plan(plan, split, progress)
    run = _Run(network, split, plan, length)
    if resume and folder is not None:
        run.restore(folder)
    progress.start("training", plan.epochs)
    progress.advance(len(run.result.path))
    try:
        while (run.result.stopped == "epochs") and len(run.result.path) < plan.epochs:
            run.epoch()
            last = run.result.path[-1]
            progress.advance(1, **{name: last[name] for name in ("loss", "ndcg_at_10") if name in last})
            if folder is not None:
                run.save(folder)
    finally:
        progress.stop()
    if run.best:
        network.load_state_dict(run.best)
    return run.result


def _fitting_plan(plan: TrainingPlan, split: Split, progress: Progress) -> TrainingPlan:
    if plan.loss == "cross-entropy" and split.interactions.item_count > FULL_SOFTMAX_LIMIT:
        progress.say(
            f"{split.interactions.item_count} items are too many for full cross-entropy: "
            f"switched to sampled softmax with {plan.negatives} negatives"
        )
        return replace(plan, loss="sampled-softmax")
    return plan


class _Run:
    """The state of one training run between epochs."""

    def __init__(self, network: nn.Module, split: Split, plan: TrainingPlan, length: int) -> None:
        self.network, self.split, self.plan = network, split, plan
        self.items = split.interactions.item_count
        self.kind: LearnsFrom = getattr(network, "learns_from", "prefixes")
        self.prefixes = Prefixes(split, length)
        self.sequences = Sequences.of(split, length)
        device = next(network.parameters()).device
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            network.parameters(),
            lr=plan.learning_rate,
            weight_decay=plan.weight_decay,
            capturable=on_gpu,
            fused=on_gpu or None,
        )
        self.recorded = None
        if on_gpu and plan.graphs and plan.loss == "cross-entropy" and self.kind in RECORDABLE:
            self.recorded = RecordedSteps(network, self.optimizer, self.prefixes.to(device), self.items)
        self.result, self.began = TrainingResult(), time.monotonic()
        self.best: dict[str, Tensor] = {}
        chosen = split.validation
        if len(chosen) > plan.validation_users:
            order = torch.randperm(len(chosen), generator=seeded(plan.seed, 2))[: plan.validation_users]
            chosen = chosen[order.numpy()]
        self.validation = chosen

    def epoch(self) -> None:
        number, began, cpu = len(self.result.path), time.monotonic(), time.process_time()
        generator = seeded(self.plan.seed, 3, number)
        self.network.train()
        with isolated_randomness(int(torch.randint(2**31, (1,), generator=generator))):
            loss, count = self._learn(number, generator)
        entry = {"epoch": number + 1, "loss": loss, "pairs": count}
        train_cpu, train_seconds = time.process_time() - cpu, time.monotonic() - began
        if len(self.validation):
            figures = evaluate(NetworkScorer(self.network, self.items), self.prefixes, self.validation, (10,))
            entry |= {name: figures[name] for name in ("hr_at_10", "ndcg_at_10")}
        self.result.seconds += time.monotonic() - began
        self.result.cpu_seconds += time.process_time() - cpu
        self.result.path.append({**entry, "train_cpu_seconds": train_cpu, "train_seconds": train_seconds})
        self._judge(entry.get("ndcg_at_10"))

    def _learn(self, number: int, generator: torch.Generator) -> tuple[float, int]:
        """All steps of an epoch: the mean loss and the number of targets."""
        batches = self._batches(number)
        if self.recorded is not None:
            widths = [int(self.prefixes.lengths(positions).max()) for positions in batches]
            loss, count = self.recorded.epoch(batches, widths)
            _finite(loss, number)
            return loss, count
        total, count = 0.0, 0
        for positions in batches:
            loss, rows = batch_loss(self, positions, generator)
            value = _finite(loss.item(), number)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total, count = total + value * rows, count + rows
        return total / max(count, 1), count

    def _judge(self, ndcg: float | None) -> None:
        """Early stopping. Without validation there is nothing to judge by."""
        result, number = self.result, len(self.result.path)
        if ndcg is not None and ndcg > result.best_ndcg:
            result.best_epoch, result.best_ndcg = number, ndcg
            self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        if ndcg is not None and number - result.best_epoch >= self.plan.patience:
            result.stopped = "early"
        elif self._out_of_time():
            result.stopped = "time"

    def _out_of_time(self) -> bool:
        plan = self.plan
        if plan.cpu_seconds is not None and self.result.cpu_seconds >= plan.cpu_seconds:
            return True
        return plan.wall_seconds is not None and time.monotonic() - self.began >= plan.wall_seconds

    def _batches(self, number: int) -> list[Tensor]:
        plan = self.plan
        if self.kind == "prefixes":
            positions = self.split.train
            if plan.pairs_per_epoch is not None and plan.pairs_per_epoch < len(positions):
                order = torch.randperm(len(positions), generator=seeded(plan.seed, 4, number))
                positions = positions[np.sort(order[: plan.pairs_per_epoch].numpy())]
            return self.prefixes.epoch(positions, plan.batch_size, plan.seed, number)
        return self.sequences.prefixes.epoch(self.sequences.ends, plan.sequence_batch_size, plan.seed, number)

    def save(self, folder: Path) -> None:
        model, _ = flatten_state(self.network.state_dict(), "model")
        best, _ = flatten_state(self.best, "best") if self.best else ({}, {})
        tensors, rest = flatten_state(self.optimizer.state_dict(), "optimizer")
        facts = {"result": asdict(self.result), "optimizer": rest, "plan": asdict(self.plan)}
        save_checkpoint(folder, len(self.result.path), {**model, **best, **tensors}, facts)

    def restore(self, folder: Path) -> None:
        """Continues from the newest checkpoint of `folder`, if there is one."""
        saved = latest_checkpoint(folder)
        if saved is None:
            return
        copy_into(self.network, saved.tensors, "model")
        self.optimizer.load_state_dict(unflatten_state(saved.tensors, saved.facts["optimizer"], "optimizer"))
        self.best = {
            name.removeprefix("best/"): tensor
            for name, tensor in saved.tensors.items()
            if name.startswith("best/")
        }
        self.result = TrainingResult(**saved.facts["result"])
        if self.result.stopped == "time":  # a resumed run gets new time
            self.result.stopped, self.result.cpu_seconds = "epochs", 0.0


def _finite(loss: float, number: int) -> float:
    if not math.isfinite(loss):
        raise DataError(
            f"the loss is {loss} in epoch {number + 1}; try a smaller --learning-rate"
            + (" (the last good epoch is saved)" if number else "")
        )
    return loss


def batch_loss(run: _Run, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
    """(mean loss, rows) of one batch for whatever the network learns from."""
    network, plan = run.network, run.plan
    table = item_table(network, run.items)
    kind = run.kind
    if kind == "prefixes":
        batch = run.prefixes.gather(positions)
        encoded, targets = network(batch.histories.to(table.device)), batch.targets.to(table.device)
    elif kind == "positions":
        inputs, wanted = run.sequences.gather(positions)
        asked = wanted > 0
        encoded = network.encode_all(inputs.to(table.device))[asked.to(table.device)]  # pyright: ignore
        targets = wanted[asked].to(table.device)
    else:
        whole = run.sequences.prefixes.gather(positions)
        items = torch.cat([whole.histories, whole.targets[:, None]], dim=1)
        hidden = cloze_mask(items, generator)
        encoded = network.encode_masked(items.to(table.device), hidden.to(table.device))  # pyright: ignore
        targets = items[hidden].to(table.device)
    return next_item_loss(plan.loss, encoded, table, targets, generator, plan.negatives), len(targets)


def cloze_mask(items: Tensor, generator: torch.Generator) -> Tensor:
    """True where an item is hidden: a random fifth, and at least one (the last) of every sequence."""
    hidden = (torch.rand(items.shape, generator=generator) < MASK_SHARE) & (items > 0)
    hidden[:, -1] |= ~hidden.any(1)
    return hidden
