"""The state of one rank while it makes an image: which step, which band, what the others said before.

Layers ask the session for what they need of other bands; whether the answer is fresh, of the step before
(displaced) or absent (naive) is decided here and nowhere else.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewer.parallel.bands import Bands
from fewer.parallel.group import Done, Group, Neighbours, Pending
from fewer.parallel.plan import ParallelPlan


@dataclass(slots=True)
class Memory:
    """What a layer keeps from step to step: the others' data on their way, and its own then."""

    pending: Pending
    own: Tensor | None = None


@dataclass(slots=True)
class Session:
    """Mutable, one per parallel model; never shared between threads."""

    group: Group
    plan: ParallelPlan
    bands: Bands = field(default_factory=lambda: Bands((0,)))
    """The cut at the resolution of the network's input."""
    axis: int = 2
    """Tensor axis that is cut: 2 for rows, 3 for columns."""
    time: float = 0.0
    """Set by models whose layers learn the time before the bands."""
    step: int = -1
    last_time: float = float("inf")
    memories: dict[tuple[str, str], Memory] = field(default_factory=dict)

    def begin_step(self, time: float, bands: Bands, axis: int) -> None:
        """Counts a step. A time above the last one, or another size, begins a new image."""
        if time > self.last_time or bands != self.bands or axis != self.axis:
            self.begin_image()
        self.step += 1
        self.last_time, self.bands, self.axis = time, bands, axis

    def begin_image(self) -> None:
        """Forgets what belongs to the image before; exchanges on their way are drained first."""
        for memory in self.memories.values():
            memory.pending.wait()
        self.memories.clear()
        self.step, self.last_time = -1, float("inf")

    @property
    def exact(self) -> bool:
        """Whether this step exchanges fresh data (step 0 always does, unless naive)."""
        if self.plan.mode == "naive":
            return False
        return self.plan.mode != "displaced" or self.step <= self.plan.warmup_steps

    @property
    def alone(self) -> bool:
        """Whether there is nobody to exchange with, or nobody is asked."""
        return self.group.size == 1 or self.plan.mode == "naive"

    def band_start(self, factor: float = 1) -> int:
        """First row of this rank's band, at `factor` times the input's resolution."""
        return int(self.bands.start(self.group.rank) * factor)

    def summed_state(self, layer: str, own: Tensor) -> Tensor:
        """The linear-attention state over all bands, given this band's; the last column normalises.

        Displaced rules of distrifusion §2.2: `replace` puts the own part in place, `corrected` assumes that
        all bands moved as the own one did, and falls back to `replace` for keys whose normaliser would not
        stay positive.
        """
        if self.alone:
            return own
        key = (layer, "state")
        if self.exact:
            total = self.group.start_sum(own).wait()
            if self.plan.mode == "displaced":
                self.memories[key] = Memory(Done(total), own)
            return total
        memory = self.memories[key]
        before = memory.pending.wait()
        assert isinstance(before, Tensor) and memory.own is not None
        if self.plan.state_rule == "frozen":
            return before - memory.own + own
        self.memories[key] = Memory(self.group.start_sum(own), own)
        replaced = before - memory.own + own
        if self.plan.state_rule == "replace":
            return replaced
        gain = self.bands.length / self.bands.lengths[self.group.rank]
        corrected = before + gain * (own - memory.own)
        return torch.where(corrected[..., -1:] > 0, corrected, replaced)

    def neighbour_rows(self, layer: str, features: Tensor, depth: int) -> Neighbours:
        """The `depth` rows before and after this band; None at the image's border (or where naive)."""
        if self.alone:
            return None, None
        first = features.narrow(self.axis, 0, depth)
        last = features.narrow(self.axis, features.shape[self.axis] - depth, depth)
        key = (layer, "halo")
        if self.exact or self.plan.halo == "sync":
            fresh = self.group.start_neighbours(first, last).wait()
            if self.plan.mode == "displaced" and self.plan.halo == "stale":
                self.memories[key] = Memory(Done(fresh))
            return fresh
        rows = self.memories[key].pending.wait()
        if self.plan.state_rule != "frozen":
            self.memories[key] = Memory(self.group.start_neighbours(first, last))
        assert isinstance(rows, tuple)
        return rows

    def gathered(self, layer: str, own: Tensor, lengths: list[int], axis: int) -> Tensor:
        """All bands' tensors along `axis`; displaced: the others' of the step before, the own fresh."""
        if self.alone:
            return own
        key = (layer, "gather")
        if self.exact:
            whole = self.group.start_gather(own, lengths, axis).wait()
            if self.plan.mode == "displaced":
                self.memories[key] = Memory(Done(whole))
            return whole
        whole = self.memories[key].pending.wait()
        assert isinstance(whole, Tensor)
        if self.plan.state_rule != "frozen":
            self.memories[key] = Memory(self.group.start_gather(own, lengths, axis))
        before = sum(lengths[: self.group.rank])
        parts = [
            whole.narrow(axis, 0, before),
            own,
            whole.narrow(axis, before + own.shape[axis], whole.shape[axis] - before - own.shape[axis]),
        ]
        return torch.cat(parts, dim=axis)
