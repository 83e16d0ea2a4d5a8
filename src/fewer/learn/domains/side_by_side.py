"""Several runs at once on one device: on a GPU every step of a run, from the choice of its pictures to the
optimizer and the sums of domain gradients, is one CUDA graph, and runs replay theirs on streams of their own.

Runs of small networks are bound by launches and by waiting for the host; here the host only replays. A lane
(network, optimizer, masks, buffers, graphs) is used by one run after another, so that each form of a step is
recorded once a lane, not once a run. A run ends with what `invariant` ends with, on a CPU bit for bit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fewer.core.device import pick_device
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress, SilentProgress
from fewer.learn.domains.images import Domains
from fewer.learn.domains.lane import Lane, Shared
from fewer.learn.domains.picture_table import PictureTable
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.protocol import Record
from fewer.learn.domains.run import InvariantResult
from fewer.learn.domains.training import RECORDABLE


@dataclass(frozen=True, slots=True)
class Wanted:
    """One run: the domain that is held out, its plan, what is left out besides; `inner` as of `invariant`."""

    target: str
    plan: InvariantPlan
    left_out: tuple[str, ...] = ()
    inner: Mapping[str, Sequence[Record]] | None = None


def can_share(plan: InvariantPlan) -> bool:
    """Whether runs of this plan can be trained side by side."""
    return plan.base in RECORDABLE and plan.network_weights is None


def invariant_side_by_side(
    domains: Domains, runs: Sequence[Wanted], lanes: int = 3, progress: Progress | None = None
) -> Iterator[tuple[int, InvariantResult]]:
    """Trains all `runs`, at most `lanes` at a time, and yields (number, result) as they end. There are no
    checkpoints: a run that was interrupted starts afresh.

    Raises `ConfigError` for a base whose steps draw numbers on the host, and what `invariant` raises.
    """
    odd = next((run.plan for run in runs if not can_share(run.plan)), None)
    if odd is not None:
        raise ConfigError(
            f"runs of base {odd.base!r} cannot be trained side by side; allowed: {', '.join(RECORDABLE)}, "
            "without network_weights; train them one after another"
        )
    if not runs:
        return
    progress = progress or SilentProgress()
    progress.start(f"{len(runs)} runs side by side", sum(run.plan.steps for run in runs))
    try:
        for number, result in _all(domains, runs, lanes, progress):
            progress.say(f"run {number + 1} of {len(runs)} has ended")
            yield number, result
    finally:
        progress.stop()


def _all(
    domains: Domains, runs: Sequence[Wanted], lanes: int, progress: Progress
) -> Iterator[tuple[int, InvariantResult]]:
    tables: dict[str, PictureTable] = {}
    shared = Shared()
    waiting, busy = list(range(len(runs))), []
    idle: list[Lane] = []
    while waiting or busy:
        while waiting and len(busy) < lanes:
            number = waiting.pop(0)
            run = runs[number]
            shape = _shape(run)
            lane = next((lane for lane in idle if lane.shape == shape), None)
            if lane is None:
                idle.clear()  # of another shape: their memory is needed
                if run.plan.device not in tables:
                    tables[run.plan.device] = PictureTable(domains, pick_device(run.plan.device))
                lane = Lane(shape, domains, tables[run.plan.device])
            else:
                idle.remove(lane)
            lane.load(number, [run.target, *run.left_out], run.plan, shared, run.inner)
            busy.append(lane)
        for lane in list(busy):
            progress.advance(lane.go_on())
            if lane.ended:
                busy.remove(lane)
                idle.append(lane)
                yield lane.number, lane.result()


def _shape(run: Wanted) -> Hashable:
    """What two runs must share to use one lane after the other: all but what is drawn, masked or gathered."""
    free = ("delta", "accumulation", "warmup", "exchange_end", "evaluate_every", "first_mask", "drop")
    free += ("score", "domain_head", "penalty", "penalty_from")
    same = replace(
        run.plan, base="erm", method="none", mode="faithful", seed=0, density=1.0, alpha=0.0, holdout=0.5
    )
    # The released code's mode masks other tensors.
    return replace(same, **dict.fromkeys(free)), len(run.left_out), run.plan.mode == "tmllab"  # pyright: ignore
