"""Steps of a spread model as CUDA graphs, with the collectives inside (DistriFusion §"CUDA graphs").

One graph for steps that exchange at once and, in displaced mode, one for those that read the step before.
What one step leaves for the next lies in fixed places (`Session.static`); every exchange on its way is waited
for inside the graph, so communication hides behind the computation of its own step.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewer.generate.engine.graphs import StepGraphs, _Captured
from fewer.parallel.session import Session


@dataclass(slots=True)
class BandGraphs(StepGraphs):
    """Graphs of a step with exchanges in it; trying the step out leaves no trace in the memories."""

    session: Session | None = None

    def __call__(
        self, inputs: Sequence[Tensor], constants: Sequence[Tensor], source: object, version: Hashable
    ) -> Tensor:
        result = super(BandGraphs, self).__call__(inputs, constants, source, version)
        heartbeat = getattr(self.session.group, "heartbeat", None) if self.session is not None else None
        if heartbeat is not None and result.is_cuda:
            event = torch.cuda.Event()
            event.record()
            heartbeat.expect(event)
        return result

    def _capture(self, captured: _Captured) -> None:
        assert self.session is not None
        kept = self.session.snapshot()
        super(BandGraphs, self)._capture(captured)  # slots make a class anew, so super needs its name
        self.session.restore(kept)


class GraphedSteps:
    """A diffusers model that `parallelize` has spread, each step replayed as one graph.

    `call(model, sample, timestep, *rest)` runs the model on tensors; `rest` are constants of a picture. On a
    CPU the same bookkeeping serves a plain call. Of one model make one of these, before its first step.
    """

    def __init__(self, model: nn.Module, call: Callable[..., Tensor]) -> None:
        session = model.band_session
        assert isinstance(session, Session)
        self.model, self.call, self.session = model, call, session
        session.static, session.counting = True, False
        self.exact = BandGraphs(self._run, session=session)
        self.displaced = BandGraphs(self._run, session=session)

    @torch.no_grad()
    def __call__(self, sample: Tensor, timestep: Tensor, *rest: Tensor) -> Tensor:
        """One step, on every rank; `timestep` is a tensor on the sample's device."""
        from fewer.parallel.for_diffusers import count_step

        count_step(self.model, sample, timestep, rest[0] if rest else None)
        graphs = self.exact if self.session.exact else self.displaced
        return graphs([sample, timestep], rest, rest[0] if rest else None, 0)

    def _run(self, *tensors: Tensor) -> Tensor:
        return self.call(self.model, *tensors)
