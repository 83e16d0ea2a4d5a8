"""`fewer learn variation`: several data sets distilled together and one by one, at the same number of
pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, FullPrecision, pick_device
from fewer.core.progress import Progress
from fewer.learn.data import LabelledImages, load_images
from fewer.learn.distillation.architectures import NetworkPlan
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.loop import distill
from fewer.learn.distillation.plan import DistillPlan, MethodName
from fewer.learn.distillation.training import Recipe
from fewer.learn.distillation.variation import study_variation


@dataclass(frozen=True, slots=True, kw_only=True)
class VariationRequest:
    """What `fewer learn variation` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore
    data: Annotated[tuple[Path, ...], Field(min_length=2, max_length=100)]
    """Two or more data sets."""
    kind: Literal["small", "great"] = "great"
    """small: the same classes at several sites. great: unlike data sets, each with its own classes."""
    images_per_class: Annotated[int, Field(ge=1, le=1000)] = 10
    """Of each distilled set."""
    method: MethodName = "dm"
    """How sets are distilled."""
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Of distilling; the method's own if absent."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = 28
    """Resize both sides of every picture to this first."""
    width: Annotated[int, Field(ge=4, le=1024)] = 128
    """Channels of the ConvNet."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Of training on a distilled set."""
    networks: Annotated[int, Field(ge=1, le=100)] = 3
    """Networks trained for a figure."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Makes a run repeatable."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: FullPrecision = "auto"
    """Networks compute in fp32."""


def variation_command(request: VariationRequest, progress: Progress) -> dict[str, object]:
    """Balanced accuracy of both ways, and of every data set alone."""
    splits = [load_images(path, size=request.image_size) for path in request.data]

    def distil(train: LabelledImages, images_per_class: int) -> DistilledSet:
        plan = DistillPlan(
            method=request.method,
            images_per_class=images_per_class,
            iterations=request.iterations,
            network=NetworkPlan(width=request.width),
            seed=request.seed,
        )
        return distill(train, plan=plan, device=request.device, progress=progress)

    found = study_variation(
        splits,
        request.kind,
        distil,
        request.images_per_class,
        recipe=Recipe(epochs=request.epochs),
        seeds=tuple(range(request.networks)),
        device=pick_device(request.device),
    )
    return {
        "kind": request.kind,
        "distilled_union": found.of_union.as_dict(),
        "union_of_distilled": found.union_of.as_dict(),
        "single": {name: score.as_dict() for name, score in found.single.items()},
    }
