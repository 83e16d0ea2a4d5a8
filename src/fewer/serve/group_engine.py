"""A worker over several devices: it leads a group of ranks, each of which draws its bands of every picture.

The group stays from job to job, with its models. A rank that dies ends the group: the job fails with 503, the
next one starts another group. Other rooms' work needs no group and is done by the worker itself.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewer.core.errors import FewerError
from fewer.serve.engine import EngineEvent, LocalEngine

if TYPE_CHECKING:
    from fewer.generate.pipeline import TextToImage
    from fewer.generate.request import GenerateRequest
    from fewer.parallel.group import Group

Drawn = tuple[int, EngineEvent | None]


@dataclass(frozen=True, slots=True)
class Refused:
    """All ranks agreed that a request cannot be drawn; the group goes on."""

    error: FewerError


class GroupEngine:
    """`options["group"]` devices as one engine; `number` of the worker says which of the machine's GPUs."""

    def __init__(self, options: dict, inner: str = "fewer.serve.group_engine:band_engine") -> None:
        from fewer.core.device import pick_device
        from fewer.parallel.launch import RankPool

        self._options, self._inner = options, inner
        self._device = pick_device(options.get("device", "auto"))
        if self._device.type == "cuda":  # the ranks inherit what they may see
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(
                own_gpus(options["group"], options.get("number", 0))
            )
        self._pool = RankPool(options["group"], device_type=self._device.type)
        self.together: int = options.get("together") or (8 if self._device.type == "cuda" else 1)

    def run(self, request: dict) -> Iterator[EngineEvent]:
        """A picture on the group, or another room's work."""
        if "task" in request:
            from fewer.serve.tasks import run_task

            yield from run_task(request, self._options.get("results"), str(self._device))
            return
        for _, event in self.run_together([request]):
            if event is not None:
                yield event

    def run_together(self, requests: Sequence[dict]) -> Iterator[Drawn]:
        """As `LocalEngine.run_together`; stopping the iteration stops every rank before its next step."""
        events: Any = self._pool.stream(draw_on_rank, self._inner, self._options, list(requests))
        try:
            for event in events:
                if isinstance(event, Refused):
                    raise event.error
                yield event
        finally:
            events.close()

    def close(self) -> None:
        """Ends the ranks."""
        self._pool.close()


def own_gpus(group: int, number: int) -> list[str]:
    """The GPUs of worker `number`, by the names under which this process may see them."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = named or [str(index) for index in range(torch.cuda.device_count())]
    return visible[number * group : (number + 1) * group]


def draw_on_rank(
    group: "Group", inner: str, options: dict, requests: list[dict]
) -> Iterator[Drawn | Refused]:
    """What every rank runs for a job. All ranks yield equally often, the first one's events count."""
    kept: dict[str, Any] = group.kept  # pyright: ignore[reportAttributeAccessIssue]
    if "engine" not in kept:
        module, _, function = inner.partition(":")
        kept["engine"] = getattr(importlib.import_module(module), function)(options, group)
    engine, refused = kept["engine"], None
    try:
        engine.admit(requests)
    except FewerError as error:
        refused = error
    # What one rank cannot do none does: the others would wait for it.
    complaints = [error for error in group.gather_object(refused) if isinstance(error, FewerError)]
    if complaints:
        yield Refused(complaints[0])
        return
    try:
        yield from engine.run_together(requests)
    except FewerError as error:  # raised by every rank: memory is asked for together
        yield Refused(error)


def band_engine(options: dict, group: "Group") -> "BandEngine":
    """The engine of one rank."""
    return BandEngine(options, group)


class BandEngine(LocalEngine):
    """Models whose networks are spread over the group as soon as they are loaded."""

    def __init__(self, options: dict, group: "Group") -> None:
        from fewer.core.device import available_memory, pick_device
        from fewer.serve.shelf import Shelf

        self._device, self._results = pick_device(options.get("device", "auto")), None
        self._classes, self._loras = frozenset(options.get("classes", ())), dict(options.get("loras", {}))
        # Equal on every rank, so that all of them drop the same models.
        free = min(int(free) for free in group.gather_object(available_memory(self._device)))  # pyright: ignore
        memory = options.get("memory") or (free if self._device.type == "cuda" else free // group.size)
        spread = spread_over(group)
        self._shelf = Shelf(
            options.get("models", {}), str(self._device), options.get("dtype", "auto"), memory, spread
        )
        self.together = options.get("together") or (8 if self._device.type == "cuda" else 1)

    def require_room(self, pipe: "TextToImage", single: "GenerateRequest", together: int) -> None:
        """Nothing: the spread networks ask for their bands, on every rank at once."""


def spread_over(group: "Group") -> "Callable[[TextToImage], None]":
    """Changes a pipeline so that this rank draws its band; how, is measured once a model."""

    def spread(pipe: "TextToImage") -> None:
        from fewer.generate.request import GenerateRequest
        from fewer.parallel.attach import parallelize
        from fewer.parallel.automatic import plan_on_this_machine
        from fewer.parallel.plan import ParallelPlan

        plan = exact = ParallelPlan(devices=group.size, mode="sync", guidance="batched")
        if hasattr(pipe.transformer, "transformer_blocks"):
            single = pipe.complete(GenerateRequest(prompt=("a picture",)))
            latents = list(pipe.grid(single))
            guided = not pipe.transformer.params.guidance_embeds
            plan, _ = plan_on_this_machine(
                ParallelPlan(devices=group.size), pipe.transformer, group, latents,
                pipe.settings.text_length, guided,
            )  # fmt: skip
        pipe.transformer = parallelize(pipe.transformer, plan, group)  # pyright: ignore
        pipe.autoencoder = parallelize(pipe.autoencoder, exact, group)  # pyright: ignore

    return spread
