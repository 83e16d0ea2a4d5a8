"""`fewer learn evaluate MODEL_OR_DISTILLED --data DATA`: what is it worth on these pictures?

What the path holds decides: a folder with `config.json` is a trained classifier, a `.safetensors` file is a
distilled data set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from tyro.conf import Positional

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.progress import Progress
from fewer.learn.data import ImageSplits, LabelledImages, in_channels, load_images
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.picture_files import Fit, fit_of


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """Measure a trained classifier, or what a distilled data set teaches."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    model: Positional[Path]
    """Folder of a trained classifier, or a .distilled.safetensors file."""
    data: Path
    """Pictures with labels: .npz, folder or list."""
    split: Literal["test", "validation", "train", "auto"] = "auto"
    """Which part of the data; auto: test, else validation, else train."""
    image_size: Annotated[int, Field(ge=8, le=512)] | None = None
    """Resize both sides of all pictures to this; default that of the model."""
    fit: Fit | None = None
    """How what is not square is resized: squeeze, crop (its middle), pad (black); default as in training."""
    seed: Annotated[int, Field(ge=0, le=2**62)] = 0
    """For a distilled set: the network that is trained on it."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "fp32"
    """Number format of a classifier; auto: bf16 on a GPU. What a distilled set trains computes in fp32."""


def evaluate_command(request: EvaluateRequest, progress: Progress) -> dict[str, object]:
    """Accuracy, balanced accuracy, AUC, calibration, recall of each class and the confusion matrix."""
    kind = kind_of(request.model)
    if kind == "distilled":
        from fewer.learn.distillation.distilled_set import DistilledSet
        from fewer.learn.distillation.scores import side_of

        if request.dtype not in ("auto", "fp32"):
            raise ConfigError(
                f"dtype {request.dtype}: what a distilled set trains computes in fp32; leave it out"
            )
        made = DistilledSet.load(request.model)
        size, own = request.image_size or side_of(made), fit_of(made.datasheet.method_config)
        splits = load_images(request.data, size=size, fit=request.fit or own)
        return _evaluate_distilled(request, choose_split(splits, request.split), progress)
    model = TrainedClassifier.load(request.model, request.device, request.dtype)
    # Pictures of another size or colour than the model's are brought to it, as `fewer learn predict` does it.
    side = model.plan.height if model.plan.height == model.plan.width else None
    splits = load_images(request.data, size=request.image_size or side, fit=request.fit or model.fit)
    data = choose_split(splits, request.split)
    figures = model.evaluate(replace(data, images=in_channels(data.images, model.plan.channels)))
    facts = {"model": str(request.model), "data": splits.name, "classes": list(model.class_names)}
    return {**facts, **figures.as_dict()}


def kind_of(path: Path) -> Literal["classifier", "distilled"]:
    """Raises `FileError` if nothing is there, `ConfigError` if it is neither."""
    if not path.exists():
        raise FileError(f"{path.name!r} is not there; check the path", missing=True)
    if path.is_dir():
        return "classifier"
    if path.suffix.lower() == ".safetensors":
        return "distilled"
    raise ConfigError(f"{path.name!r}: a model is a folder, a distilled data set a .safetensors file")


def choose_split(splits: ImageSplits, split: str) -> LabelledImages:
    """The labelled pictures of `split`. Raises `DataError` if there are none."""
    found = {"test": splits.test, "validation": splits.validation, "train": splits.train}
    order = ["test", "validation", "train"] if split == "auto" else [split]
    for name in order:
        data = found[name]
        if data is not None and len(data.labelled()):
            return data.labelled()
    raise DataError(f"{splits.name}: no labelled pictures in {' or '.join(order)}")


def _evaluate_distilled(
    request: EvaluateRequest, data: LabelledImages, progress: Progress
) -> dict[str, object]:
    """The part for distilled data sets; their own file does the work."""
    try:
        from fewer.learn.distillation.evaluate_file import evaluate_file
    except ModuleNotFoundError as error:
        raise ConfigError("this build cannot read distilled data sets; give a model folder") from error
    return evaluate_file(request.model, data, seed=request.seed, device=request.device, progress=progress)
