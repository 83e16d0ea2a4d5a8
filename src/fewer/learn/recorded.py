"""Work without inputs, such as a whole training step, as CUDA graphs: what it reads and writes stays put.

`graphed.GraphedFunction` records functions of tensors; here nothing is copied in or out, and many such works
with graphs of their own may be replayed side by side, each on its own stream.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class RecordedWork:
    """Calls `work` of a form, which changes tensors in place: on a GPU the first call of a form records it.

    `state()` names all tensors that any work changes and that matter afterwards. Those that a recording
    makes (moments of an optimizer, sums) are zero after it. On the CPU, or when recording fails (the log says
    why), work is simply done.
    """

    def __init__(self, device: torch.device, state: Callable[[], Mapping[str, Tensor]]) -> None:
        self.device, self.state = device, state
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.records = device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.records else None

    def __call__(self, form: Hashable, work: Callable[[], None]) -> None:
        """One piece of work on the current stream."""
        if self.records and form not in self.graphs:
            try:
                self.graphs[form] = self._record(work)
            except RuntimeError as error:
                logger.warning("no CUDA graph, running without: %s", error)
                logger.debug("recording failed here", exc_info=True)
                self.records = False
        if self.records:
            self.graphs[form].replay()
        else:
            work()

    def _record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        before = {name: tensor.detach().clone() for name, tensor in self.state().items()}
        stream = torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with warnings.catch_warnings():
                # An optimizer that can be recorded says that it would be faster if it could not.
                warnings.simplefilter("ignore")
                work()  # handles, workspaces, plans and the optimizer's state are made here
                torch.cuda.synchronize(self.device)
                # Graphs recorded on one stream would share its cuBLAS workspace, and replayed side by side
                # they would write into it at once. Without one, each recording takes its own.
                torch._C._cuda_clearCublasWorkspaces()
                with torch.cuda.graph(graph, pool=self.pool, stream=stream):
                    work()
                torch._C._cuda_clearCublasWorkspaces()
        finally:
            torch.cuda.synchronize(self.device)
            with torch.no_grad():
                for name, tensor in self.state().items():
                    if name in before:
                        tensor.copy_(before[name])
                    else:
                        tensor.zero_()
        return graph
