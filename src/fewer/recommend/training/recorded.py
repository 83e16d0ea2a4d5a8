"""Training steps as CUDA graphs: small networks on a GPU wait for launches, not for arithmetic.

A step (gathering histories, forward, loss, backward, Adam) is recorded once per form (rows, width of the
histories) and then replayed as one launch; nothing comes back to the CPU until the epoch is over. Histories
are padded to a multiple of `WIDTH_STEP`, so that there are few forms; padding changes no result.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.training.encoders import item_table

logger = logging.getLogger(__name__)

WIDTH_STEP = 8  # also what the attention kernel with a mask asks for
EAGER_STEPS = 2  # of every form before it is recorded: handles, workspaces and the optimizer's state
RECORDABLE = ("prefixes", "positions")  # what a network may learn from


@dataclass(frozen=True, slots=True)
class _Form:
    """What makes two steps the same sequence of kernels."""

    rows: int
    width: int


@dataclass(slots=True)
class RecordedSteps:
    """Full cross-entropy steps of one network with one optimizer (which must be capturable on a GPU).

    `prefixes` lie on the network's device. Without a GPU, or after a failed recording (the log says why),
    every step runs as it is; results are the same.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    prefixes: Prefixes
    items: int
    _graphs: dict[_Form, torch.cuda.CUDAGraph] = field(default_factory=dict)
    _buffers: dict[_Form, Tensor] = field(default_factory=dict)
    _seen: Counter[_Form] = field(default_factory=Counter)
    _sums: Tensor | None = None
    """Loss times targets, and targets, of the epoch so far."""
    _stream: torch.cuda.Stream | None = None
    _gave_up: bool = False

    def epoch(self, batches: list[Tensor], widths: list[int]) -> tuple[float, int]:
        """One step for every batch (a vector of positions, on the CPU); `widths` are the longest
        histories of each. Returns the mean loss over all targets and their number."""
        device = self.prefixes.items.device
        if not batches:
            return 0.0, 0
        if self._sums is None:
            self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._sums.zero_()
        sizes = [len(batch) for batch in batches]
        positions = torch.cat(batches).to(device).split(sizes)
        forms = [_Form(size, self._padded(width)) for size, width in zip(sizes, widths, strict=True)]
        if device.type != "cuda":
            for form, batch in zip(forms, positions, strict=True):
                self._step(batch, form.width)
        else:
            stream = self._stream = self._stream or torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for form, batch in zip(forms, positions, strict=True):
                    self._replay(form, batch, stream)
            torch.cuda.current_stream(device).wait_stream(stream)
        total, count = self._sums.tolist()
        return total / max(count, 1.0), int(count)

    def _padded(self, width: int) -> int:
        return min(-(-max(width, 1) // WIDTH_STEP) * WIDTH_STEP, self.prefixes.length)

    def _replay(self, form: _Form, batch: Tensor, stream: torch.cuda.Stream) -> None:
        self._seen[form] += 1
        graph = self._graphs.get(form)
        if graph is None and (self._gave_up or self._seen[form] <= EAGER_STEPS):
            self._step(batch, form.width)
            return
        if graph is None:
            graph = self._record(form, batch, stream)
            if graph is None:
                self._step(batch, form.width)
                return
        self._buffers[form].copy_(batch)
        graph.replay()

    def _record(self, form: _Form, batch: Tensor, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph | None:
        """Recording computes nothing; the caller replays."""
        buffer = self._buffers[form] = batch.clone()
        self.optimizer.zero_grad(set_to_none=True)
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                self._step(buffer, form.width)
        except RuntimeError as error:
            logger.warning("no CUDA graph, training without: %s", error)
            self._gave_up = True
            self.optimizer.zero_grad(set_to_none=True)
            return None
        self.optimizer.zero_grad(set_to_none=True)  # the graph keeps its gradients' memory, not we
        self._graphs[form] = graph
        return graph

    def _step(self, positions: Int[Tensor, "batch"], width: int) -> None:
        loss, count = self._loss(positions, width)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        assert self._sums is not None
        self._sums += torch.stack([loss.detach().double() * count, count.double()])

    def _loss(self, positions: Int[Tensor, "batch"], width: int) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Mean loss and number of targets. Places without a question are computed and ignored: choosing rows
        by a mask would ask the GPU how many there are."""
        batch = self.prefixes.gather(positions, width)
        if getattr(self.network, "learns_from", "prefixes") == "prefixes":
            encoded, targets = self.network(batch.histories), batch.targets
        else:
            whole = torch.cat([batch.histories, batch.targets[:, None]], dim=1)
            targets = (whole[:, 1:] * (whole[:, :-1] > 0)).flatten()
            encoded = self.network.encode_all(batch.histories).flatten(0, 1)  # pyright: ignore
        scores = encoded @ item_table(self.network, self.items)[1:].T
        return functional.cross_entropy(scores, targets - 1, ignore_index=-1), (targets > 0).sum()
