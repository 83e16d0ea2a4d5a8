"""Small networks trained side by side on one GPU: each one's whole training step is a CUDA graph, and the
graphs of many networks run on streams of their own. Nets this small are bound by launches, not arithmetic.

Batches are drawn inside the step from tables on the device, by a generator of the trainee's own, so that two
trainees with one seed see the same batches. On the CPU the same step is called without a graph.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
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
    done: int = 0
    losses: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def prepare(self) -> None:
        """Makes the optimizer and, on a GPU, captures one step; the network is afterwards what it was."""
        self.device = next(self.model.parameters()).device
        on_gpu = self.device.type == "cuda"
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        self.count = torch.zeros((), dtype=torch.long, device=self.device)
        self.rates = torch.tensor([self.rate * self._factor(step) for step in range(self.steps)]).to(
            self.device
        )
        self.history = torch.zeros(self.steps, device=self.device)
        self.parameters = [p for group in self.groups for p in group["params"]]
        rate = torch.tensor(self.rate, device=self.device)
        self.optimizer = torch.optim.AdamW(
            self.groups, lr=rate, betas=self.betas, capturable=on_gpu, fused=on_gpu or None
        )
        self.graph = None
        if on_gpu and self.captured:
            before = [p.detach().clone() for p in self.parameters]
            try:
                self._capture()
            except RuntimeError as error:
                print(f"{self.name}: without a graph, {str(error)[:200]}", flush=True)
                torch.cuda.synchronize()
                with torch.no_grad():
                    for parameter, value in zip(self.parameters, before, strict=True):
                        parameter.copy_(value)
                self.captured, self.graph = False, None
                self.prepare()

    def _factor(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * share))

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
        kept = [p.detach().clone() for p in self.parameters]
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
        with torch.no_grad():
            for parameter, before in zip(self.parameters, kept, strict=True):
                parameter.copy_(before)
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()
            self.count.zero_()
            self.history.zero_()
        self.generator.manual_seed(self.seed)
        self.stream = torch.cuda.Stream()
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


def train_side_by_side(trainees: Sequence[Trainee], deadline: float = math.inf, look_every: int = 50) -> bool:
    """All trainees to their ends, step by step in turn. False where the deadline (monotonic) came first."""
    on_gpu = torch.cuda.is_available()
    for trainee in trainees:
        trainee.prepare()
    began = time.monotonic()
    while any(trainee.done < trainee.steps for trainee in trainees):
        for _ in range(look_every):
            for trainee in trainees:
                if trainee.done < trainee.steps:
                    trainee.advance()
        if on_gpu:
            torch.cuda.synchronize()
        if time.monotonic() > deadline:
            return False
    for trainee in trainees:
        trainee.seconds = time.monotonic() - began
        trainee.graph = None
        trainee.model.requires_grad_(False).eval()
    return True
