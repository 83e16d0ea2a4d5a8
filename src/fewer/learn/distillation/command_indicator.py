"""`fewer learn indicator`: before distilling, what is to be expected of it; and the study behind the
forecast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fewer.core.config import describe
from fewer.core.device import DeviceName, FullPrecision, pick_device
from fewer.core.errors import DataError, FileError
from fewer.core.files import read_json, write_json
from fewer.core.progress import Progress
from fewer.learn.data import load_images
from fewer.learn.distillation.architectures import NetworkPlan
from fewer.learn.distillation.indicator import IndicatorPoint, fit_indicator, forecast
from fewer.learn.distillation.study import study_indicator
from fewer.learn.distillation.training import Recipe

SHIPPED = Path(__file__).with_name("indicator_points.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndicatorRequest:
    """What `fewer learn indicator` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore
    data: tuple[Path, ...]
    """One data set: the forecast for it. Four or more: the study, each is distilled."""
    images_per_class: Annotated[int, Field(ge=1, le=5000)] = 10
    """Of a random subset, and of a distilled set."""
    method: Literal["dc", "dsa", "idc", "dm", "idm", "ncfm", "mtt", "datm"] = "dm"
    """Of the study."""
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Of the study's distillations."""
    points: Path | None = None
    """JSON of an earlier study; default: the one that was measured for this package."""
    output: Path | None = None
    """Write the study's points here, for --points."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = 16
    """The forecast's pictures and networks are small on purpose: it must cost little."""
    width: Annotated[int, Field(ge=4, le=1024)] = 32
    """Channels of the ConvNet."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Of training on a subset."""
    draws: Annotated[int, Field(ge=2, le=100)] = 5
    """Random subsets."""
    networks: Annotated[int, Field(ge=1, le=100)] = 2
    """Networks trained on each subset."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides subsets and networks."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: FullPrecision = "auto"
    """Networks compute in fp32."""


def indicator_command(request: IndicatorRequest, progress: Progress) -> dict[str, object]:
    """One data set: forecast. Several: study."""
    network, recipe = NetworkPlan(width=request.width), Recipe(epochs=request.epochs)
    device = pick_device(request.device)
    splits = [load_images(path, size=request.image_size) for path in request.data]
    if len(splits) > 1:
        points = study_indicator(
            splits,
            request.method,
            request.images_per_class,
            network=network,
            recipe=recipe,
            iterations=request.iterations,
            draws=request.draws,
            seed=request.seed,
            device=request.device,
            progress=progress,
        )
        fit = fit_indicator(points, seed=request.seed)
        listed = [{"name": p.name, "random": p.random, "distilled": p.distilled} for p in points]
        if request.output is not None:
            write_json(request.output, {"images_per_class": request.images_per_class, "points": listed})
        return {"points": listed, **fit.as_dict()}
    source = request.points or SHIPPED
    fit = fit_indicator(read_points(source), seed=request.seed)
    studied, note = read_json(source).get("images_per_class", request.images_per_class), None
    if studied != request.images_per_class:
        note = (
            f"the line was measured with {studied} images per class; at {request.images_per_class} it may be "
            "off: make one with `fewer learn indicator` on four or more data sets and --output, for --points"
        )
        progress.say(f"warning: {note}")
    found = forecast(
        splits[0].train.labelled(),
        splits[0].held_out(),
        request.images_per_class,
        fit,
        network=network,
        recipe=recipe,
        draws=request.draws,
        networks=request.networks,
        seed=request.seed,
        device=device,
    )
    answer: dict[str, object] = {
        "random_balanced_accuracy": found.random.balanced_accuracy,
        "random_spread": found.random.balanced_spread,
        "expected_balanced_accuracy": found.expected,
        "range_90_percent": [found.low, found.high],
        "advice": found.advice,
        "seconds": found.seconds,
        "indicator": fit.as_dict(),
    }
    return answer if note is None else {**answer, "note": note}


def read_points(path: Path) -> list[IndicatorPoint]:
    """The points of a study. Raises `FileError` for a file that is none."""
    raw = read_json(path).get("points")
    if not isinstance(raw, list):
        raise FileError(
            f"{path.name!r} holds no list 'points'; write one with: fewer learn indicator --output"
        )
    if len(raw) > 10_000:
        raise DataError(f"{path.name!r} holds {len(raw)} points; at most 10,000 are read")
    try:
        return [TypeAdapter(IndicatorPoint).validate_python(point) for point in raw]
    except ValidationError as error:
        raise FileError(f"{path.name!r}: {describe(error)}") from error
