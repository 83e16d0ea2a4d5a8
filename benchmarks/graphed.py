"""Small networks trained side by side on one GPU: each one's whole training step is a CUDA graph, and the
graphs of many networks run on streams of their own. Nets this small are bound by launches, not arithmetic.

Batches are drawn inside the step from tables on the device, by a generator of the trainee's own, so that two
trainees with one seed see the same batches. On the CPU the same step is called without a graph.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from captured_steps import OrthogonalSteps
from torch import Tensor, nn


@dataclass
class Trainee:
    """A network in training. `loss(generator)` draws a batch and gives the loss to minimise."""

    name: str
    model: nn.Module
    loss: Callable[[torch.Generator], Tensor]
    groups: list[dict]
    rate: float
    steps: int
    warmup: int
    final_rate: float
    seed: int
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = 1.0
    captured: bool = True
    """On a GPU: as a graph. Larger nets gain little by it."""
    orthogonal: bool = False
    """Matrices take orthogonal steps (captured_steps.py), the rest AdamW's."""
    done: int = 0
    losses: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def prepare(self) -> None:
        """Makes the optimizer and, on a GPU, captures one step; the network is afterwards what it was."""
        self.device = next(self.model.parameters()).device
        on_gpu = self.device.type == "cuda"
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        self.count = torch.zeros((), dtype=torch.long, device=self.device)
        self.anchor = (self.warmup, 0.0)
        self.rates = self._rates()
        self.history = torch.zeros(self.steps, device=self.device)
        self.parameters = [p for group in self.groups for p in group["params"]]
        self.start = [p.detach().clone() for p in self.parameters]
        rate = torch.tensor(self.rate, device=self.device)
        kind = OrthogonalSteps if self.orthogonal else torch.optim.AdamW
        self.optimizer = kind(self.groups, lr=rate, betas=self.betas, capturable=on_gpu, fused=on_gpu or None)
        self.graph = None
        if on_gpu and self.captured:
            try:
                self._capture()
            except RuntimeError as error:
                print(f"{self.name}: without a graph, {str(error)[:200]}", flush=True)
                torch.cuda.synchronize()
                with torch.no_grad():
                    for parameter, value in zip(self.parameters, self.start, strict=True):
                        parameter.copy_(value)
                self.captured, self.graph = False, None
                self.prepare()

    def _rates(self) -> Tensor:
        return torch.tensor([self.rate * self._factor(step) for step in range(self.steps)]).to(self.device)

    def _factor(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * self._share(step)))

    def _share(self, step: int) -> float:
        """Of the way down from the highest rate."""
        first, gone = self.anchor
        return gone + (1 - gone) * (step - first) / max(1, self.steps - first)

    def end_at(self, steps: int) -> None:
        """From the rate it has reached it goes down faster or slower, to end after `steps` in all."""
        steps = min(steps, len(self.rates))
        gone = self._share(max(self.done, self.warmup))
        self.anchor, self.steps = (max(self.done, self.warmup), gone), steps
        self.rates[: self.steps] = self._rates()

    def _step(self) -> None:
        position = self.count.view(1)
        for group in self.optimizer.param_groups:
            group["lr"].copy_(self.rates.index_select(0, position)[0])
        loss = self.loss(self.generator)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        self.optimizer.step()
        self.history.index_copy_(0, position, loss.detach().float().view(1))
        self.count.add_(1)

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # one step for real, so that the optimizer's state exists
            self._step()
            self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(side)
        # Graphs are captured on one stream and would share its cuBLAS workspace: wrong for graphs
        # that run side by side. Without one, each capture takes a workspace of its own.
        torch._C._cuda_clearCublasWorkspaces()
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self._step()
        torch._C._cuda_clearCublasWorkspaces()
        self.stream = torch.cuda.Stream()
        self.begin_again(self.steps)

    @torch.no_grad()
    def begin_again(self, steps: int) -> None:
        """As it was before its first step, now to make `steps` of them, not more than it was prepared for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        for parameter, before in zip(self.parameters, self.start, strict=True):
            parameter.copy_(before)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.count.zero_()
        self.history.zero_()
        self.generator.manual_seed(self.seed)
        self.steps, self.done, self.anchor = steps, 0, (self.warmup, 0.0)
        self.rates[:steps] = self._rates()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def advance(self) -> None:
        """One step, not waited for."""
        if self.graph is None:
            self.optimizer.zero_grad(set_to_none=True)
            self._step()
        else:
            with torch.cuda.stream(self.stream):
                self.graph.replay()
        self.done += 1


@dataclass
class Averaged(Trainee):
    """A network in training with a moving average of its weights beside it."""

    averaged: int = 100
    """Steps in which the moving average forgets."""

    def prepare(self) -> None:
        self.average = [p.detach().clone() for group in self.groups for p in group["params"]]
        super().prepare()

    def _step(self) -> None:
        super()._step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 / self.averaged)

    def begin_again(self, steps: int) -> None:
        super().begin_again(steps)
        for average, before in zip(self.average, self.start, strict=True):
            average.copy_(before)

    @contextmanager
    def averages_in_place(self) -> Iterator[torch.nn.Module]:
        """The model with the averages for weights, for as long as the context lasts."""
        weights = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
            yield self.model
            torch._foreach_copy_(self.parameters, weights)


def train_side_by_side(
    trainees: Sequence[Trainee],
    deadline: float = math.inf,
    look_every: int = 50,
    prepared: bool = False,
    look: Callable[[], None] | None = None,
) -> bool:
    """All trainees to their ends, step by step in turn. False where the deadline (monotonic) came first.
    `look` is called after every `look_every` rounds."""
    for trainee in () if prepared else trainees:
        trainee.prepare()
    began = time.monotonic()
    while any(trainee.done < trainee.steps for trainee in trainees):
        advance_all(trainees, look_every)
        if time.monotonic() > deadline:
            break
        if look is not None:
            look()
    finished = all(trainee.done == trainee.steps for trainee in trainees)
    for trainee in trainees:
        trainee.seconds = time.monotonic() - began
        if finished:
            trainee.graph = None
        trainee.model.requires_grad_(False).eval()
    return finished


def advance_all(trainees: Sequence[Trainee], rounds: int) -> None:
    """So many rounds of one step each, waited for."""
    for _ in range(rounds):
        for trainee in trainees:
            if trainee.done < trainee.steps:
                trainee.advance()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def keep_within(trainees: Sequence[Trainee], began: float, seconds: float) -> None:
    """Where others use the device, too, and the pace changes: ends all `seconds` after `began`."""
    done, now = trainees[0].done, time.monotonic()
    fits = int(done * seconds / (now - began))
    if done > 100 and abs(fits - trainees[0].steps) > 0.03 * fits and fits > done + 50:
        for trainee in trainees:
            trainee.end_at(fits)


def steps_within(trainees: Sequence[Trainee], seconds: float, most: int) -> int:
    """Sets all (prepared) trainees to as many steps as they can make side by side in so many seconds."""
    on_gpu = torch.cuda.is_available()
    advance_all(trainees, 10 if on_gpu else 1)
    began, rounds = time.monotonic(), 30 if on_gpu else 2
    advance_all(trainees, rounds)
    steps = min(most, max(10, int(seconds * rounds / (time.monotonic() - began)) // 10 * 10))
    for trainee in trainees:
        trainee.begin_again(steps)
    return steps
