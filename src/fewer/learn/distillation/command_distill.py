"""`fewer learn distill`: a labelled set in, one distilled file and its page out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from tyro.constructors import PrimitiveConstructorSpec

from fewer.core.checkpoint import latest_checkpoint, refuse_earlier_run, refuse_finished
from fewer.core.device import DeviceName, FullPrecision, pick_device
from fewer.core.errors import ConfigError, DataError
from fewer.core.files import output_files, read_arrays, write_bytes
from fewer.core.progress import Progress
from fewer.learn.data import LabelledImages, load_images
from fewer.learn.distillation.architectures import NETWORK_POOL, NetworkPlan, build_network
from fewer.learn.distillation.augment import default_augmentations
from fewer.learn.distillation.datasheet import Datasheet, to_markdown
from fewer.learn.distillation.distilled_set import SUFFIX, DistilledSet
from fewer.learn.distillation.loop import RunOptions, distill
from fewer.learn.distillation.page import to_html
from fewer.learn.distillation.plan import (
    DistillPlan,
    MethodName,
    PrivacyPlan,
    StartName,
    TrajectoryPlan,
)
from fewer.learn.distillation.scores import (
    Score,
    TestPictures,
    score_distilled,
    score_full,
    score_random,
    score_steadily,
)
from fewer.learn.distillation.task import Source
from fewer.learn.overlap import warn_of_overlap
from fewer.learn.picture_files import Fit


def _switch(words: list[str]) -> bool:
    """What stands behind a flag: nothing is True. Raises `ValueError`, which the command line words."""
    if words and words[0].lower() not in ("true", "false"):
        raise ValueError(f"{words[0]!r} is neither True nor False")
    return not words or words[0].lower() == "true"


_SWITCH = PrimitiveConstructorSpec(
    nargs=(0, 1),
    metavar="[True|False]",
    instance_from_str=_switch,
    is_instance=lambda value: value is None or isinstance(value, bool),
    str_from_instance=lambda value: ["auto" if value is None else str(value)],
)
"""A flag that may also be switched off by `False`, and is neither where it is not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRequest:
    """What `fewer learn distill` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore
    data: Path
    """A MedMNIST-style .npz, a .csv list, or a folder split/class/*.png."""
    output: Path
    """FILE.distilled.safetensors; the page and the datasheet are written beside it."""
    images_per_class: Annotated[int, Field(ge=1, le=5000)] = 10
    """Stored pictures per class."""
    method: MethodName = "dm"
    """dc, dsa, idc: gradients. dm, idm, ncfm: features. mtt, datm: trajectories. Others: controls."""
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Default: the method's own."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Stop after this time."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Resize both sides of every picture to this first."""
    fit: Fit = "squeeze"
    """How what is not square is resized: squeeze, crop (its middle) or pad (black borders)."""
    start: StartName | None = None
    """noise, class-means (noised means of 32 pictures) or real (best figures, least privacy)."""
    factor: Annotated[int, Field(ge=1, le=4)] | None = None
    """Multi-formation: factor x factor small pictures in each stored one."""
    flips: bool = False
    """Mirror pictures left-right while augmenting: only where the subject allows it."""
    real_batch: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Real pictures per class in a step; default 256, ncfm 1024 where every class has them."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of the pictures; default: the method's own."""
    outer_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """dc, dsa, idc: steps per network."""
    inner_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """dc, dsa, idc: training steps of the network between them."""
    width: Annotated[int, Field(ge=4, le=1024)] = 128
    """Channels of the ConvNet: 128 is published, 32 suits a CPU."""
    experts: Annotated[int, Field(ge=1, le=200)] = 20
    """Networks trained beforehand (mtt, datm, idm, ncfm)."""
    expert_epochs: Annotated[int, Field(ge=1, le=200)] = 30
    """Epochs of each of them, and of the teacher of soft labels."""
    balanced_experts: bool = False
    """mtt, datm, idm, ncfm: experts see every class equally often, whatever its share."""
    soft_labels: Annotated[bool | None, _SWITCH] = None
    """Labels from a teacher instead of class numbers."""
    epsilon: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Differential privacy (dm, dc, dsa): the epsilon wanted."""
    noise_multiplier: Annotated[float, Field(gt=0, le=1000)] | None = None
    """The noise instead of the epsilon."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Of the guarantee; below 1 / number of pictures."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Longest influence of a picture (or patient) on a sum."""
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Chance of a picture (or patient) to take part in a step."""
    patients: Path | None = None
    """An .npz with `train_patients`: one number per training picture, the unit that is protected."""
    score: bool = True
    """Train networks on the set and on random pictures, and write the figures into the file."""
    full: bool = False
    """Also on the full set."""
    across: bool = False
    """Also five other networks."""
    networks: Annotated[int, Field(ge=1, le=100)] | None = None
    """Networks per figure; default 5 to 20, until their mean is certain to 0.3 points."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Of the recipe that trains on a set."""
    title: str = ""
    """For the datasheet, as are the next."""
    modality: str = ""
    """For the datasheet: kind of picture, such as chest X-ray."""
    licence: str = ""
    """For the datasheet: licence of the distilled set."""
    source_name: str = ""
    """For the datasheet: the real set."""
    source_licence: str = ""
    """For the datasheet: licence of the real set."""
    ethics: str = ""
    """For the datasheet: approval or consent."""
    contact: str = ""
    """For the datasheet: whom to ask."""
    site: str = ""
    """For the datasheet: where the pictures come from."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Makes a run repeatable."""
    resume: bool = False
    """Go on from the newest checkpoint beside the output."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: FullPrecision = "auto"
    """fp32, whatever the device: gradients of gradients do not bear 16 bits."""


def distill_command(request: DistillRequest, progress: Progress) -> dict[str, object]:
    """Writes the file, `NAME.html` and `NAME.md`; returns figures and names."""
    name = request.output.name
    if not name.endswith(".safetensors"):
        raise ConfigError(f"--output was {name!r}: the file must end in {SUFFIX}")
    checkpoints = request.output.parent / f".{name}.checkpoints"
    refuse_earlier_run(checkpoints, request.resume)
    if latest_checkpoint(checkpoints) is None:
        refuse_finished(request.output)
    output_files([request.output])
    splits = load_images(request.data, size=request.image_size, fit=request.fit)
    train = splits.train.labelled()
    if len(train) == 0:
        raise DataError(f"{request.data.name}: the training split has no labelled picture")
    copies = warn_of_overlap(replace(splits, train=train), progress)
    options = RunOptions(
        checkpoint_folder=checkpoints, resume=request.resume, units=_patients(request, splits.train)
    )
    plan = plan_of(request, train)
    distilled = distill(train, plan=plan, device=request.device, options=options, progress=progress)
    recipe = replace(distilled.datasheet.recipe, epochs=request.epochs)
    config = {**distilled.datasheet.method_config, "fit": request.fit}
    sheet = replace(distilled.datasheet, recipe=recipe, method_config=config)
    distilled = replace(distilled, datasheet=described(sheet, request))
    figures: dict[str, object] = {}
    judged = splits.held_out()
    if request.score and judged is not None:
        figures, across = measure(distilled, train, judged, request, progress)
        sheet = replace(distilled.datasheet, metrics=figures, cross_architecture=across)
        if copies and not sheet.privacy.get("dp"):  # which has no noise for such a count
            flattered = f"{copies} test or validation pictures were trained on as well: figures flatter."
            sheet = replace(sheet, warnings=(*sheet.warnings, flattered))
        distilled = replace(distilled, datasheet=sheet)
    distilled.save(request.output)
    page = request.output.with_name(name.removesuffix(".safetensors") + ".html")
    write_bytes(page, to_html(distilled).encode())
    write_bytes(page.with_suffix(".md"), to_markdown(distilled.datasheet).encode())
    for left in checkpoints.glob("step-*.safetensors"):
        left.unlink()
    if checkpoints.is_dir():
        checkpoints.rmdir()
    return _result(request, distilled, figures, page)


def plan_of(request: DistillRequest, train: LabelledImages) -> DistillPlan:
    """The request's settings as a plan."""
    private = request.epsilon is not None or request.noise_multiplier is not None
    privacy = None
    if private:
        privacy = PrivacyPlan(
            epsilon=request.epsilon,
            noise_multiplier=request.noise_multiplier,
            delta=request.delta,
            clip=request.clip,
            sample_rate=request.sample_rate,
        )
    elif request.patients is not None:
        raise ConfigError("--patients says what differential privacy protects; give --epsilon with it")
    return DistillPlan(
        method=request.method,
        images_per_class=request.images_per_class,
        seed=request.seed,
        iterations=request.iterations,
        seconds=request.seconds,
        start=request.start,
        factor=request.factor,
        augmentations=default_augmentations(train.channels, flips=True) if request.flips else None,
        real_batch=request.real_batch,
        outer_steps=request.outer_steps,
        inner_steps=request.inner_steps,
        learning_rate=request.learning_rate,
        soft_labels=request.soft_labels,
        network=NetworkPlan(width=request.width),
        trajectory=TrajectoryPlan(
            experts=request.experts,
            epochs=request.expert_epochs,
            latest_start=min(10, max(1, request.expert_epochs - 1)),
            expert_steps=min(2, request.expert_epochs),
            balanced=request.balanced_experts,
        ),
        privacy=privacy,
    )


def measure(
    distilled: DistilledSet,
    train: LabelledImages,
    test: LabelledImages,
    request: DistillRequest,
    progress: Progress,
) -> tuple[dict[str, object], dict[str, object]]:
    """Random, distilled and (asked) full through one recipe; then the other networks. -> (figures, across)"""
    device = pick_device(request.device)
    sheet = distilled.datasheet
    progress.say("scoring the distilled set and random pictures")

    def judge(seeds: tuple[int, ...]) -> Score:
        return score_distilled(distilled, test, seeds=seeds, device=device, progress=progress)

    ours = score_steadily(judge, request.networks)
    seeds = tuple(range(request.networks or 3))
    figures: dict[str, object] = {"distilled": ours.as_dict()}
    if sheet.privacy.get("dp"):
        # Figures of networks trained on real pictures are not covered by the guarantee: they stay out.
        return figures, {}
    source = Source.of(train, device)
    judged = TestPictures.of(test, source.mean, source.deviation, device)

    def network(plan: NetworkPlan) -> torch.nn.Module:
        return build_network(plan, train.channels, train.size, train.classes).to(device)

    plan = NetworkPlan(width=request.width)
    smallest = int(train.counts().min())
    draws = min(request.images_per_class, smallest)
    if draws == request.images_per_class:
        # Soft labels help random pictures too: beside a set that has them stand random ones with the same.
        controls = {"random": None, "random_soft_labels": distilled.extras.get("teacher")}
        for what, teacher in controls.items():
            if teacher is None and what != "random":
                continue
            control = score_random(
                source,
                network(plan),
                judged,
                sheet.recipe,
                draws,
                3,
                seeds[:1],
                teacher=teacher,  # pyright: ignore
            )
            figures[what] = control.as_dict()
    if request.full:
        full_recipe = replace(sheet.recipe, epochs=max(1, min(sheet.recipe.epochs, 30)))
        whole = score_full(source, network(plan), judged, full_recipe, seeds[:1], progress)  # pyright: ignore
        figures["full"] = {name: score.as_dict() for name, score in whole.items()}
    across: dict[str, object] = {}
    if request.across:
        for other in NETWORK_POOL:
            own = replace(plan, name=other)
            across[other] = score_distilled(
                distilled, test, network=own, seeds=seeds, device=device
            ).as_dict()
    return figures, across


def described(sheet: Datasheet, request: DistillRequest) -> Datasheet:
    """The datasheet with what only the user knows."""
    sources = tuple(
        replace(
            source,
            name=request.source_name,
            licence=request.source_licence,
            ethics=request.ethics,
            contact=request.contact,
            site=request.site,
        )
        for source in sheet.sources
    )
    return replace(
        sheet, title=request.title, modality=request.modality, licence=request.licence, sources=sources
    )


def _patients(request: DistillRequest, train: LabelledImages) -> torch.Tensor | None:
    if request.patients is None:
        return None
    arrays = read_arrays(request.patients)
    if "train_patients" not in arrays:
        raise DataError(f"{request.patients.name}: no array 'train_patients'; it holds {sorted(arrays)[:8]}")
    numbers = arrays["train_patients"].reshape(-1)
    if not np.issubdtype(numbers.dtype, np.integer) or len(numbers) != len(train):
        raise DataError(
            f"{request.patients.name}: {len(train)} whole numbers are needed, one per training picture"
        )
    return torch.from_numpy(numbers.astype(np.int64))[train.labels >= 0]


def _result(
    request: DistillRequest, distilled: DistilledSet, figures: dict[str, object], page: Path
) -> dict[str, object]:
    sheet = distilled.datasheet
    result: dict[str, object] = {
        "output": str(request.output),
        "page": str(page),
        "method": sheet.method,
        "pictures": len(distilled),
        "images_per_class": sheet.images_per_class,
        "iterations": sheet.iterations,
        "seconds": sheet.seconds,
        "bytes": request.output.stat().st_size,
    }
    ours = figures.get("distilled")
    if isinstance(ours, dict):
        result |= {key: ours[key] for key in ("accuracy", "balanced_accuracy", "auc")}
    for name in ("random", "random_soft_labels", "full"):
        if name in figures:
            result[name] = figures[name]
    if sheet.privacy.get("dp"):
        result["privacy"] = sheet.privacy["dp"]
    result["warnings"] = list(sheet.warnings)
    return result
