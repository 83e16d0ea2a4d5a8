"""The state of one rank while it makes an image: which step, which band, what the others said before.

Layers ask the session for what they need of other bands; whether the answer is fresh, of the step before
(displaced) or absent (naive) is decided here and nowhere else. Everything is started first and waited for
later, so that a layer can compute in between.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewer.parallel.bands import Bands
from fewer.parallel.buckets import NeighbourBucket, SumBucket
from fewer.parallel.group import Done, Group, Neighbours, Pending
from fewer.parallel.plan import ParallelPlan

Key = tuple[str, str]


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
    step: int = -1
    last_time: float = float("inf")
    about: Tensor | None = None
    """What the step before was asked to show: text or labels."""
    form: Hashable = None
    """Whatever else decides the shapes of what is exchanged, such as the size of the batch."""
    memories: dict[Key, Memory] = field(default_factory=dict)
    static: bool = False
    """What a CUDA graph needs: memories in fixed places, one set a size; every step ends its exchanges."""
    stores: dict[Hashable, dict[Key, Memory]] = field(default_factory=dict)
    counting: bool = True
    """Whether forward passes of diffusers models count steps themselves; not where a graph replays them."""
    widths: dict[str, int] = field(default_factory=dict)
    """Layers of softmax attention: numbers that each keeps for a token in displaced mode."""
    fitting: set[Hashable] = field(default_factory=set)
    """Sizes whose memories are known to fit."""
    fresh: list[tuple[Key, Pending, Tensor | None]] = field(default_factory=list)
    sums: dict[torch.dtype, SumBucket] = field(default_factory=dict)
    rows: dict[torch.dtype, NeighbourBucket] = field(default_factory=dict)

    def begin_step(
        self, time: float, bands: Bands, axis: int, form: Hashable = None, about: Tensor | None = None
    ) -> None:
        """Counts a step. A time above the last one, another size, or another text begins a new image.

        So does the first time once more, after a picture that was cancelled behind its first step. Later
        times may come twice: schedulers of second order evaluate them so. A picture made from another one
        begins in the middle of the times: there the text (`about`) tells.
        """
        self.end_step()  # of a step before that was cut short
        place = (bands.lengths, axis, form)
        again = self.step == 0 and time == self.last_time and self.plan.mode == "displaced"
        if (
            self._is_another(about)
            or again
            or time > self.last_time
            or place != (self.bands.lengths, self.axis, self.form)
        ):
            self.begin_image()
        self.step += 1
        self.last_time, self.bands, self.axis, self.form = time, bands, axis, form
        if self.static:
            self.memories = self.stores.setdefault(place, {})

    def _is_another(self, about: Tensor | None) -> bool:
        """Whether the picture shows something else than at the step before. Only displaced mode must know,
        and only tensors in other places are compared: reading them waits for the GPU."""
        before, self.about = self.about, about
        if self.plan.mode != "displaced" or before is None or about is None:
            return False
        if before.shape != about.shape or before.dtype != about.dtype:
            return True
        same_place = (before.data_ptr(), before.stride()) == (about.data_ptr(), about.stride())
        return not same_place and not torch.equal(before, about)

    def begin_image(self) -> None:
        """Forgets what belongs to the image before; exchanges on their way are drained first."""
        if not self.static:
            for memory in self.memories.values():
                memory.pending.wait()
            self.memories.clear()
        self.step, self.last_time = -1, float("inf")

    def end_step(self) -> None:
        """Sends what waits in buckets; with `static` memories also waits and puts everything in its place."""
        for bucket in [*self.sums.values(), *self.rows.values()]:
            bucket.send()
        self.sums.clear()
        self.rows.clear()
        for key, pending, own in self.fresh:
            result = pending.wait()
            kept = self.memories.get(key)
            if kept is None:
                self.memories[key] = Memory(Done(_copied(result)), _copied(own))
            else:
                _put(kept.pending.wait(), result)
                _put(kept.own, own)
        self.fresh.clear()

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

    def read_time(self, timestep: Tensor | float) -> float:
        """This step's time; 0 where reading it would wait for the GPU, unless displaced mode must know."""
        costs = isinstance(timestep, Tensor) and timestep.is_cuda
        if costs and self.plan.mode != "displaced":
            return 0.0
        return float(torch.as_tensor(timestep).flatten()[0])

    def band_start(self, factor: float = 1) -> int:
        """First row of this rank's band, at `factor` times the input's resolution."""
        return int(self.bands.start(self.group.rank) * factor)

    def start_state(self, layer: str, own: Tensor, ones: int = -1) -> Pending[Tensor]:
        """The linear-attention state over all bands; the last entry along axis `ones` normalises.

        Displaced rules of distrifusion §2.2: `replace` puts the own part in place, `corrected` assumes that
        all bands moved as the own one did, and falls back to `replace` for keys whose normaliser would not
        stay positive. With N bands that move by m together and by independent steps of variance v each, the
        squared errors are (N - 1)² m² + (N - 1) v and N (N - 1) v: `corrected` pays where v < m².
        """
        if self.alone:
            return Done(own)  # pyright: ignore[reportReturnType]
        key = (layer, "state")
        if self.exact:
            total = self.group.start_sum(own)
            if self.plan.mode == "displaced":
                self.remember(key, total, own)
            return total
        memory = self.memories[key]
        before = memory.pending.wait()
        assert isinstance(before, Tensor) and memory.own is not None
        replaced = before - memory.own + own
        if self.plan.state_rule != "frozen":
            self.remember(key, self.later_sum(own), own)
        if self.plan.state_rule != "corrected":
            return Done(replaced)  # pyright: ignore[reportReturnType]
        gain = self.bands.length / self.bands.lengths[self.group.rank]
        corrected = before + gain * (own - memory.own)
        normaliser = corrected.narrow(ones, corrected.shape[ones] - 1, 1)
        return Done(torch.where(normaliser > 0, corrected, replaced))  # pyright: ignore[reportReturnType]

    def start_rows(
        self, layer: str, features: Tensor, depth: int, axis: int | None = None
    ) -> Pending[Neighbours]:
        """The `depth` rows before and after this band; None at the image's border (or where naive).

        `axis` is the cut axis of `features`, where it is not that of (batch, channels, height, width).
        """
        if self.alone or depth == 0:
            return Done((None, None))  # pyright: ignore[reportReturnType]
        axis = self.axis if axis is None else axis
        first = features.narrow(axis, 0, depth)
        last = features.narrow(axis, features.shape[axis] - depth, depth)
        key = (layer, "halo")
        if self.exact or self.plan.halo == "sync":
            keep = self.plan.mode == "displaced" and self.plan.halo == "stale"
            pending = self.group.start_neighbours(first, last, keep)
            if keep:
                self.remember(key, pending)
            return pending
        rows = self.memories[key].pending.wait()
        if self.plan.state_rule != "frozen":
            self.remember(key, self._later_rows(first, last))
        assert isinstance(rows, tuple)
        return Done(rows)  # pyright: ignore[reportReturnType]

    def gathered(self, layer: str, own: Tensor, lengths: list[int], axis: int) -> Tensor:
        """All bands' tensors along `axis`; displaced: the others' of the step before, the own fresh."""
        if self.alone:
            return own
        key = (layer, "gather")
        if self.exact:
            pending = self.group.start_gather(own, lengths, axis)
            if self.plan.mode == "displaced":
                self.remember(key, pending)
            return pending.wait()
        whole = self.memories[key].pending.wait()
        assert isinstance(whole, Tensor)
        before = sum(lengths[: self.group.rank])
        after = before + own.shape[axis]
        parts = [whole.narrow(axis, 0, before), own, whole.narrow(axis, after, whole.shape[axis] - after)]
        joined = torch.cat(parts, dim=axis)
        if self.plan.state_rule != "frozen":
            self.remember(key, self.group.start_gather(own, lengths, axis))
        return joined

    def later_sum(self, tensor: Tensor) -> Pending[Tensor]:
        """A sum that nobody needs in this step; it travels with others."""
        bucket = self.sums.setdefault(tensor.dtype, SumBucket(self.group))
        pending = bucket.add(tensor)
        if len(bucket.parts) >= self.plan.bucket:
            self.sums.pop(tensor.dtype).send()
        return pending

    def _later_rows(self, first: Tensor, last: Tensor) -> Pending[Neighbours]:
        bucket = self.rows.setdefault(first.dtype, NeighbourBucket(self.group))
        pending = bucket.add(first, last)
        if len(bucket.firsts) >= self.plan.bucket:
            self.rows.pop(first.dtype).send()
        return pending

    def remember(self, key: Key, pending: Pending, own: Tensor | None = None) -> None:
        """Keeps for the next step what comes from the others, and the own part of it."""
        if self.static:
            self.fresh.append((key, pending, own))
        else:
            self.memories[key] = Memory(pending, own)

    def snapshot(self) -> dict[Key, tuple[Any, Any]]:
        """Copies of what the others said, to undo what trying a step out has changed."""
        return {
            key: (_copied(memory.pending.wait()), _copied(memory.own))
            for key, memory in self.memories.items()
        }

    def restore(self, kept: dict[Key, tuple[Any, Any]]) -> None:
        """Puts a snapshot back, in place."""
        for key, (result, own) in kept.items():
            _put(self.memories[key].pending.wait(), result)
            _put(self.memories[key].own, own)


def _copied(result):  # a Tensor, Neighbours or None, as it came
    if isinstance(result, tuple):
        return tuple(_copied(part) for part in result)
    return None if result is None else result.clone()


def _put(place, result) -> None:  # as above
    if isinstance(place, tuple):
        for inner, part in zip(place, result, strict=True):
            _put(inner, part)
    elif place is not None:
        place.copy_(result)
