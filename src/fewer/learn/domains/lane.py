"""A network with its buffers and recorded steps, in which one run after another is trained."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fewer.core.device import isolated_randomness
from fewer.core.errors import DataError
from fewer.learn.domains.gradients import GradientAverage
from fewer.learn.domains.images import Domains
from fewer.learn.domains.masks import forget_moments
from fewer.learn.domains.picture_table import PictureTable, normalised
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.protocol import Record
from fewer.learn.domains.run import InvariantResult, Run
from fewer.learn.domains.training import MaskedTraining
from fewer.learn.recorded import RecordedWork

STRETCH = 20  # steps a lane is sent ahead before the next lane has its turn
LOOK = 512  # pictures of one pass of an evaluation


@dataclass(slots=True)
class Shared:
    """What runs that differ in their method alone have in common, made once."""

    draws: dict[Hashable, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    """Rows and moves of all steps of a run."""
    starts: dict[Hashable, nn.Module] = field(default_factory=dict)
    """Networks as they are before the first step."""


class Lane:
    """Call `load`, then `go_on` until `ended`, then `result`; then the next run may be loaded."""

    def __init__(self, shape: Hashable, domains: Domains, table: PictureTable) -> None:
        self.shape, self.domains, self.table = shape, domains, table
        self.device = table.images.device
        self.training: MaskedTraining | None = None
        self.buffers: dict[str, Tensor] = {}
        self.recorded = RecordedWork(self.device, self._state)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.number = -1
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # for the table

    def load(
        self,
        number: int,
        held: Sequence[str],
        plan: InvariantPlan,
        shared: Shared,
        inner: Mapping[str, Sequence[Record]] | None = None,
    ) -> None:
        """Starts a run in this lane's tensors; `inner` as of `invariant`."""
        with self._on_stream():
            self.number, self.began = number, time.monotonic()
            self.run = Run(self.domains, held, plan, inner, self.table, self.training, shared.starts)
            if self.training is None:
                self.training = self.run.training
                self.training.average = GradientAverage(fixed=True)
                for group in (
                    *self.training.optimizer.param_groups,
                    *self.training.head_optimizer.param_groups,
                ):
                    group["capturable"] = self.device.type == "cuda"
            rows, moves = _drawn(self.run, shared)
            mean, deviation = self.run.statistics
            fresh = {"rows": rows, "mean": mean, "deviation": deviation, "history": torch.zeros(plan.steps)}
            fresh |= {
                "position": torch.zeros(1, dtype=torch.int64),
                "from": torch.zeros(1, dtype=torch.int64),
            }
            fresh |= {"found": torch.zeros_like(self.table.labels)}
            fresh |= {} if moves is None else {"moves": moves}
            for name, value in fresh.items():
                if name in self.buffers:
                    self.buffers[name].copy_(value)
                else:
                    self.buffers[name] = value.to(self.device, copy=True)
            self.run.statistics = self.buffers["mean"], self.buffers["deviation"]

    @property
    def ended(self) -> bool:
        """Whether the run that was loaded has had all its steps."""
        return self.run.training.step_number >= self.run.plan.steps

    def go_on(self) -> int:
        """At most `STRETCH` steps, up to and with the next evaluation; returns how many."""
        run, first = self.run, self.run.training.step_number
        with self._on_stream():
            for step in range(first, min(first + STRETCH, run.plan.steps)):
                self._step(step)
                if (step + 1) % run.every == 0 or step + 1 == run.plan.steps:
                    self._evaluate(step)
                    break
        return run.training.step_number - first

    def result(self) -> InvariantResult:
        """Of the run that has ended; the network in it is a copy, because the lane goes on."""
        with self._on_stream():
            made = self.run.result(time.monotonic() - self.began)
            model = replace(made.model, network=copy.deepcopy(made.model.network))
        return replace(made, model=model)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            yield

    def _step(self, step: int) -> None:
        training = self.run.training
        if training.starts_late:
            forget_moments(training.optimizer)
        if not training.network.training:
            training.network.train()
        average, counts = training.average, dict(training.average.counts)
        # A step that is called may draw (dropout), from the run's seed; a recorded one draws nothing.
        randomness = nullcontext() if self.recorded.records else isolated_randomness(self.run.step_seed(step))
        with randomness:
            self.recorded((training.form(), self.run.sizes), self._whole_step)
        for kind in training.kinds(training.masked_step):
            counts[kind] = counts.get(kind, 0) + 1  # a replay runs no Python
        average.counts = counts
        training.finish_step()

    def _whole_step(self) -> None:
        """All of a step that is the device's."""
        position, moves = self.buffers["position"], self.buffers.get("moves")
        rows = self.buffers["rows"].index_select(0, position)[0]
        moved = None if moves is None else moves.index_select(0, position)[0]
        batch = self.table.batch(rows, moved, self.run.statistics, self.run.sizes)
        loss = self.run.training.whole_step(batch)
        self.buffers["history"].index_copy_(0, position, loss.detach().float().view(1))
        position.add_(1)

    def _evaluate(self, step: int) -> None:
        """A record of all domains, and the first look at the losses since the last one."""
        losses = self.buffers["history"][: step + 1].tolist()
        bad = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            raise DataError(f"the loss is {losses[bad]} at step {bad}; try a lower learning rate or penalty")
        self.judged = self.run.judged()
        count = len(self.table.labels)
        for start in range(0, count, LOOK):
            self.buffers["from"].fill_(min(start, max(0, count - LOOK)))
            self.recorded("look", self._look)
        right = (self.buffers["found"] == self.table.labels).double().cpu()
        self.run.evaluate(losses[-1], right.split(self.table.counts))

    @torch.no_grad()
    def _look(self) -> None:
        """The classes that the network finds in the next `LOOK` pictures of the table."""
        size = min(LOOK, len(self.table.labels))
        rows = self.buffers["from"] + torch.arange(size, device=self.device)
        with self.run.training.precision():
            pixels = normalised(self.table.images[rows], self.run.statistics)
            self.buffers["found"].index_copy_(0, rows, self.judged(pixels).argmax(1))

    def _state(self) -> dict[str, Tensor]:
        """All tensors that steps change."""
        training = self.run.training
        state = {f"buffer/{name}": value for name, value in self.buffers.items()}
        modules = {"network": training.network, "head": training.head, "base": training.state}
        if training.smooth is not None:
            modules["smooth"] = training.smooth
        for name, module in modules.items():
            state |= {f"{name}/{k}": v for k, v in module.state_dict().items()}
        for name, optimizer in (("adam", training.optimizer), ("adam of head", training.head_optimizer)):
            for number, entry in enumerate(optimizer.state.values()):
                state |= {f"{name}/{number}/{k}": v for k, v in entry.items() if isinstance(v, Tensor)}
        return state | {f"gathered/{name}": value for name, value in training.average.tensors().items()}


def _drawn(run: Run, shared: Shared) -> tuple[Tensor, Tensor | None]:
    """Rows and moves of all steps, drawn once for all methods."""
    plan = run.plan
    key = (plan.seed, plan.steps, plan.batch, plan.augment, plan.holdout, tuple(run.sources))
    if key not in shared.draws:
        each = [run.draw(step) for step in range(plan.steps)]
        moves = [move for _, move in each if move is not None]
        shared.draws[key] = torch.stack([rows for rows, _ in each]), torch.stack(moves) if moves else None
    return shared.draws[key]
