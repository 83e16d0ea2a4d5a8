"""`fewer learn semi-supervised`: a classifier from a few labels and many pictures without."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Int64
from pydantic import ConfigDict, Field
from torch import Tensor

from fewer.core.checkpoint import refuse_earlier_run, refuse_finished
from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError, DataError
from fewer.core.files import write_bytes
from fewer.core.progress import Progress
from fewer.learn.data import LabelledImages, load_images, pick_labels
from fewer.learn.evaluate import Figures
from fewer.learn.few_labels.plan import MethodName, SemiSupervisedPlan
from fewer.learn.few_labels.report import report_page, verdict
from fewer.learn.few_labels.train import SemiSupervisedResult, semi_supervised
from fewer.learn.few_labels.usb_config import read_usb_config
from fewer.learn.networks import NetworkName
from fewer.learn.overlap import warn_of_overlap
from fewer.learn.picture_files import Fit, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class SemiSupervisedRequest:
    """Train a classifier from a few labelled and many unlabelled pictures."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    data: Path
    """MedMNIST-style .npz, folder split/class/*.png (unlabelled pictures in unlabelled/), or list .csv."""
    output: Path
    """Folder for the model, the report and the lists."""
    labels_per_class: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Use this many labels of each class, drawn with the seed; default: all labels there are."""
    labelled_list: Path | None = None
    """CSV with a column `row`: the pictures whose labels to use (as an earlier run wrote it)."""
    method: MethodName = "instant"
    """The threshold; labels-only ignores the unlabelled pictures."""
    baseline: bool = True
    """Also train on the labels alone, and say whether the unlabelled pictures helped."""
    network: NetworkName = "small-cnn"
    """The classifier."""
    network_folder: str | None = None
    """Local folder of a pretrained vit (transformers' format)."""
    image_size: Annotated[int, Field(ge=8, le=512)] | None = None
    """Resize both sides of all pictures to this."""
    fit: Fit = "squeeze"
    """How what is not square is resized: squeeze, crop (its middle) or pad (black borders)."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Optimizer steps."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Labelled pictures a step."""
    ratio: Annotated[int, Field(ge=1, le=64)] = 5
    """Unlabelled pictures for each labelled one."""
    rate: Annotated[float, Field(gt=0, le=10)] = 0.03
    """Learning rate."""
    cutoff: Annotated[float, Field(gt=0, le=1)] | None = None
    """Threshold, or its base; default as each method's paper."""
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.1
    """InstanT: share of the run with the base threshold alone."""
    unlabelled_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Factor on the unlabelled loss."""
    flip: bool = False
    """Pictures may be mirrored left and right."""
    usb_config: Path | None = None
    """Run file (.yaml) of the benchmark code USB; options that are given win over it."""
    settings: dict[str, object] | None = None
    """Further settings of the plan (estimation, posterior, compare, …); in a --config file."""
    resume: bool = False
    """Go on where an interrupted run into the same output folder stopped."""
    seed: Annotated[int, Field(ge=0, le=2**62)] = 0
    """Decides labels drawn, weights, batches and augmentation."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """Number format of the network."""


def semi_supervised_command(request: SemiSupervisedRequest, progress: Progress) -> dict[str, object]:
    """Writes model/, report.html, labelled.csv and unlabelled.csv into the output folder."""
    if request.usb_config is not None:
        request = with_usb_config(request, progress)
    checkpoints = request.output / "checkpoints"
    refuse_earlier_run(checkpoints, request.resume)
    if not request.resume:
        refuse_finished(request.output / "model")
    splits = load_images(request.data, size=request.image_size, fit=request.fit)
    warn_of_overlap(splits, progress)
    if request.usb_config is not None and request.labels_per_class is None and not request.labelled_list:
        request = _with_labels(request, splits.train.classes)
    plan = plan_of(request)
    rows = labelled_rows(request, splits.train)
    test = splits.held_out()
    result = semi_supervised(
        splits.train,
        rows,
        plan=plan,
        test=test,
        checkpoints=checkpoints / plan.method,
        resume=request.resume,
        progress=progress,
    )
    baseline = None
    if request.baseline and plan.method != "labels-only" and test is not None:
        beside = semi_supervised(
            splits.train,
            rows,
            plan=replace(plan, method="labels-only"),
            test=test,
            checkpoints=checkpoints / "labels-only",
            resume=request.resume,
            progress=progress,
        )
        baseline = beside.figures
    training = {**result.model.training, "fit": request.fit}
    result = replace(result, model=replace(result.model, training=training))
    _write(request.output, result, splits.train, test, baseline)
    return _answer(request, result, baseline)


def with_usb_config(request: SemiSupervisedRequest, progress: Progress) -> SemiSupervisedRequest:
    """The request with the file's values where it still has its defaults; unknown keys are said aloud."""
    assert request.usb_config is not None
    run = read_usb_config(request.usb_config)
    if run.unknown:
        progress.say(f"{request.usb_config.name}: these keys mean nothing here: {', '.join(run.unknown)}")
    own = SemiSupervisedRequest(data=request.data, output=request.output)
    given = {**run.values, "image_size": run.image_size}
    changes: dict[str, object] = {}
    settings = dict(request.settings or {})
    for name, value in given.items():
        if name not in SemiSupervisedRequest.__dataclass_fields__:
            settings.setdefault(name, value)
        elif value is not None and getattr(request, name) == getattr(own, name):
            changes[name] = value
    return replace(request, **changes, settings=settings)  # pyright: ignore


def _with_labels(request: SemiSupervisedRequest, classes: int) -> SemiSupervisedRequest:
    assert request.usb_config is not None
    labels = read_usb_config(request.usb_config).labels
    if labels is None:
        return request
    if labels % classes:
        raise ConfigError(f"num_labels is {labels}, which cannot be spread evenly over {classes} classes")
    return replace(request, labels_per_class=labels // classes)


def plan_of(request: SemiSupervisedRequest) -> SemiSupervisedPlan:
    """The run's plan: the request's own fields, then `settings`. Raises `ConfigError` for unknown keys."""
    from fewer.core.config import validate

    shared = set(SemiSupervisedPlan.__dataclass_fields__) & set(request.__dataclass_fields__)
    values = {name: getattr(request, name) for name in shared}
    extra = request.settings or {}
    twice = sorted(set(extra) & shared)
    if twice:
        raise ConfigError(f"settings repeats {', '.join(twice)}, which are options of their own")
    return validate(SemiSupervisedPlan, {**values, **extra})


def labelled_rows(request: SemiSupervisedRequest, train: LabelledImages) -> Int64[Tensor, " m"]:
    """Row numbers whose labels may be used."""
    if request.labelled_list is not None:
        if request.labels_per_class is not None:
            raise ConfigError("give --labels-per-class or --labelled-list, not both")
        return read_rows(request.labelled_list)
    if request.labels_per_class is None:
        return torch.nonzero(train.labels >= 0).flatten()
    return pick_labels(train.labels, request.labels_per_class, train.classes, request.seed, train.class_names)


def read_rows(path: Path) -> Int64[Tensor, " m"]:
    """The column `row` of a CSV file. Raises `FileError` or `DataError` naming the line."""
    rows = []
    for number, line in read_table(path, ("row",)):
        text = line["row"]
        if not (text.isascii() and text.isdecimal() and len(text) < 16):
            raise DataError(f"{path.name} line {number}: column `row` must hold a row number, found {text!r}")
        rows.append(int(text))
    if not rows:
        raise DataError(f"{path.name} lists no rows; a column `row` is needed")
    return torch.tensor(sorted(set(rows)))


def _write(
    output: Path,
    result: SemiSupervisedResult,
    train: LabelledImages,
    test: LabelledImages | None,
    baseline: Figures | None,
) -> None:
    result.model.save(output / "model")
    write_bytes(output / "report.html", report_page(result, train, test, baseline).encode())
    names = train.class_names
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "label", *(["file"] if train.files else [])])
    for row in result.labelled.tolist():
        writer.writerow([row, names[int(train.labels[row])], *train.files[row : row + 1]])
    write_bytes(output / "labelled.csv", stream.getvalue().encode())
    write_bytes(output / "unlabelled.csv", result.verdicts.as_csv(names, train.files).encode())


def _answer(
    request: SemiSupervisedRequest, result: SemiSupervisedResult, baseline: Figures | None
) -> dict[str, object]:
    last = {name: values[-1] for name, values in result.curves.items() if values and name != "step"}
    answer: dict[str, object] = {
        "method": request.method,
        "labelled": len(result.labelled),
        "seconds": round(result.seconds, 2),
        "steps_per_second": round(result.steps_made / max(result.seconds, 1e-9), 3),
    }
    if result.figures is not None:
        figures = result.figures.as_dict()
        answer |= {
            name: figures[name] for name in ("accuracy", "balanced_accuracy", "auc", "calibration_error")
        }
    answer["verdict"] = verdict(result.figures, baseline)
    if baseline is not None:
        beside = baseline.as_dict()
        answer["labels_only"] = {name: beside[name] for name in ("accuracy", "balanced_accuracy", "auc")}
    if last:
        answer["utilisation"] = last["utilisation"]
        answer["purity"] = last["purity"]
    answer |= {"output": str(request.output), "report": str(request.output / "report.html")}
    return answer
