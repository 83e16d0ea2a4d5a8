"""The verbs that learn: `fewer recommend train`, `search`, `update`."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.alone import alone_in
from fewer.core.checkpoint import latest_checkpoint, refuse_finished
from fewer.core.config import validate
from fewer.core.device import pick_device
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import output_folder
from fewer.core.progress import Progress
from fewer.recommend.data.features import read_features
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.reading import Columns, column_names, read_interactions
from fewer.recommend.data.recbole_config import read_recbole_config
from fewer.recommend.fitting import FitSettings, fit, make_split
from fewer.recommend.methods import MethodName, automlp_shape, fitting_candidates
from fewer.recommend.options import LearningOptions, RunOptions
from fewer.recommend.recommender import Recommender
from fewer.recommend.report import write_report
from fewer.recommend.search import search_length, verify_by_grid
from fewer.recommend.serving.cold import add_items, described_items
from fewer.recommend.serving.update import UpdatePlan, update
from fewer.recommend.started import NAME, belongs
from fewer.recommend.training.loop import TrainingPlan
from fewer.recommend.training.losses import LossName
from fewer.recommend.trials import settle

Described = Mapping[str, Mapping[str, Sequence[str]]]
"""Item id -> feature -> words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest(LearningOptions):
    """What `fewer recommend train` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    output: Path
    """Folder for the model and its report."""
    method: MethodName = "automlp"
    """The model."""
    split: Literal["leave-last-out", "temporal", "everything"] = "leave-last-out"
    """`everything` learns from all and measures nothing (for deployment; set --epochs)."""
    search_epochs: Annotated[int, Field(ge=1)] = 30
    """At most, of the search for the short-term length."""
    loss: LossName = "cross-entropy"
    """What is minimised; above 200,000 items cross-entropy is sampled."""
    epochs: Annotated[int, Field(ge=1)] = 200
    """At most."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a better validation figure after which training stops."""
    cpu_seconds: Annotated[float, Field(gt=0)] | None = None
    """Stop after so much processor time."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    recbole_config: Path | None = None
    """RecBole's .yaml; options that are given win over it."""

    def training(self) -> TrainingPlan:
        return TrainingPlan(
            loss=self.loss,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            patience=self.patience,
            cpu_seconds=self.cpu_seconds,
            seed=self.seed,
        )


def train_command(request: TrainRequest, progress: Progress) -> dict[str, object]:
    """Trains, measures, saves the model and its report page; figures of the method and the baselines."""
    if request.recbole_config is not None:
        request = with_recbole_config(request, request.recbole_config, progress)
    interactions = request.read()
    output_folder(request.output)
    with alone_in(request.output):
        return _train(request, interactions, progress)


def _train(request: TrainRequest, interactions: Interactions, progress: Progress) -> dict[str, object]:
    checkpoints = request.output / "checkpoints"
    started = [latest_checkpoint(folder) for folder in (checkpoints, checkpoints / "search")]
    begun = any(started) or (checkpoints / "search.json").is_file()
    if begun and not request.resume:
        raise ConfigError(
            f"{request.output} holds a started training; add --resume to go on, or give another --output"
        )
    if not begun:
        refuse_finished(request.output / "model.safetensors")
    settings = FitSettings(
        method=request.method,
        sizes=request.sizes(),
        training=request.training(),
        search=request.search_plan(request.search_epochs),
        split=request.split,
        verify_search=request.verify_search,
        features=request.item_features(interactions),
        device=request.device,
        folder=checkpoints,
        resume=request.resume,
    )
    made = fit(interactions, settings, progress)
    made.save(request.output)
    for path in (*checkpoints.glob("step-*.safetensors"), checkpoints / "search.json", checkpoints / NAME):
        path.unlink(missing_ok=True)  # the run is complete; the model holds its result
    shutil.rmtree(checkpoints / "trials", ignore_errors=True)
    page = write_report(made, request.output / "report.html")
    return {"output": str(request.output), "report": str(page), **_figures(made)}


def with_recbole_config(request: TrainRequest, path: Path, progress: Progress) -> TrainRequest:
    """The request with the file's values wherever an option was left at its default."""
    config = read_recbole_config(path)
    for note in config.notes:
        progress.say(note)
    untouched = {field.name for field in fields(request) if getattr(request, field.name) == field.default}
    return validate(
        TrainRequest, replace(request, **{k: v for k, v in config.values.items() if k in untouched})
    )


def _figures(made: Recommender) -> dict[str, object]:
    metrics = made.report["metrics"]
    training = made.report["training"]
    assert isinstance(metrics, dict) and isinstance(training, dict)
    own = metrics.get(made.method, {})
    figures: dict[str, object] = {"method": made.method, "protocol": "full ranking", **own}
    figures["baselines"] = {name: row["ndcg_at_10"] for name, row in metrics.items() if name != made.method}
    if made.method == "automlp":
        figures["short_term_length"] = made.sizes.candidates[0]
    figures |= {
        "epochs": len(training["path"]),
        "stopped": training["stopped"],
        "seconds": training["seconds"],
    }
    return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest(LearningOptions):
    """What `fewer recommend search` is asked: only the length, no final training."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    epochs: Annotated[int, Field(ge=1)] = 30
    """Of the search, at most."""
    grid_epochs: Annotated[int, Field(ge=1)] = 20
    """Of every fixed length, with --verify-search (and at most, in a trial)."""
    output: Path | None = None
    """Folder for checkpoints of the search."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""


def search_command(request: SearchRequest, progress: Progress) -> dict[str, object]:
    """The most likely length, all probabilities, and with --verify-search its rank in the grid."""
    interactions = request.read()
    if request.output is None:
        return _search(request, interactions, progress)
    output_folder(request.output)
    with alone_in(request.output):
        return _search(request, interactions, progress)


def _search(request: SearchRequest, interactions: Interactions, progress: Progress) -> dict[str, object]:
    sizes, notes = fitting_candidates(request.sizes())
    for note in (*interactions.notes, *notes):
        progress.say(note)
    split = make_split(interactions, "leave-last-out")
    shape, device = automlp_shape(sizes, interactions.item_count), pick_device(request.device)
    features, plan = request.item_features(interactions), request.search_plan(request.epochs)
    if request.output is not None:
        belongs(request.output, request.resume, interactions, features, sizes=request.sizes(), search=plan)
    shared = {"features": features, "device": device, "progress": progress}
    found = search_length(
        shape,
        split,
        plan,
        folder=request.output,
        resume=request.resume,
        **shared,
    )
    training = TrainingPlan(
        epochs=request.grid_epochs,
        batch_size=request.batch_size,
        learning_rate=request.learning_rate,
        seed=request.seed,
    )
    trials = None if request.output is None else request.output / "trials"
    if trials is not None and not request.resume:
        shutil.rmtree(trials, ignore_errors=True)
    settle(found, shape, split, training, request.finalists, folder=trials, **shared)
    result: dict[str, object] = {
        "short_term_length": found.length,
        "probabilities": dict(zip(map(str, found.candidates), found.probabilities, strict=True)),
        "figures": dict(zip(map(str, found.candidates), found.figures, strict=True)),
        "trials": found.trials,
        "path": found.path,
        "seconds": found.seconds,
    }
    if request.verify_search:
        grid = verify_by_grid(shape, split, training, **shared)
        result["grid"] = grid
        result["rank_in_grid"] = 1 + [int(entry["length"]) for entry in grid].index(found.length)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRequest(RunOptions):
    """What `fewer recommend update` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Path
    """Folder of a trained model."""
    output: Path
    """Folder for the updated model (may be --model)."""
    data: Path | None = None
    """The new interactions; without them only the items of --new-items are added."""
    new_items: Path | None = None
    """Table of items (an item column, every other column a feature). Those the model does not know get a
    vector from their features before anything is learned."""
    replay: Path | None = None
    """The earlier log: gives returning users their history and keeps old knowledge alive."""
    replay_share: Annotated[float, Field(ge=0)] = 1.0
    """Old training pairs per new one."""
    only_new_items: bool = False
    """Train nothing but the vectors of new items."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Over the new interactions."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-4
    """Of the optimizer."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    """Training pairs a step."""
    user_column: str | None = None
    """Found by its usual names if absent."""
    item_column: str | None = None
    """Found by its usual names if absent."""
    time_column: str | None = None
    """Found by its usual names if absent."""

    def columns(self) -> Columns:
        return column_names(self.user_column, self.item_column, self.time_column)

    def plan(self) -> UpdatePlan:
        training = TrainingPlan(
            epochs=self.epochs,
            patience=max(2, self.epochs // 2),
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return UpdatePlan(training=training, replay=self.replay_share, only_new_items=self.only_new_items)


def update_command(request: UpdateRequest, progress: Progress) -> dict[str, object]:
    """Learns the new interactions on top and reports the figures before and after, on new and old targets."""
    if request.data is None and request.new_items is None:
        raise ConfigError(
            "nothing to add: give --data (new interactions), --new-items (a table of items), or both"
        )
    if request.data is not None and not request.data.is_file():
        raise FileError(f"interactions {str(request.data)!r}: no such file", missing=True)
    recommender = Recommender.load(request.model, request.device)
    described = {} if request.new_items is None else described_items(read_features(request.new_items))
    output_folder(request.output)
    with alone_in(request.output):
        return _update(request, recommender, described, progress)


def _update(
    request: UpdateRequest, recommender: Recommender, described: Described, progress: Progress
) -> dict[str, object]:
    if request.data is None:
        fresh = {one: words for one, words in described.items() if one not in set(recommender.item_ids)}
        add_items(recommender, fresh).save(request.output)
        return {"output": str(request.output), "new_items": len(fresh), "new_interactions": 0}
    changed = update(
        recommender,
        read_interactions(request.data, request.columns()),
        None if request.replay is None else read_interactions(request.replay, request.columns()),
        request.plan(),
        progress,
        described,
    )
    changed.recommender.save(request.output)
    return {
        "output": str(request.output),
        "new_items": changed.new_items,
        "new_interactions": changed.new_interactions,
        "before": changed.before,
        "after": changed.after,
    }
