"""The verbs that learn: `fewer recommend train`, `search`, `update`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.checkpoint import latest_checkpoint
from fewer.core.device import DeviceName, pick_device
from fewer.core.errors import ConfigError, FileError
from fewer.core.progress import Progress
from fewer.recommend.automlp import CANDIDATES
from fewer.recommend.data.features import ItemFeatures, read_features
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.reading import column_names, read_interactions
from fewer.recommend.fitting import FitSettings, fit, make_split
from fewer.recommend.methods import MethodName, Sizes, automlp_shape, fitting_candidates
from fewer.recommend.recommender import Recommender
from fewer.recommend.report import write_report
from fewer.recommend.search import SearchPlan, search_length, verify_by_grid
from fewer.recommend.serving.update import UpdatePlan, update
from fewer.recommend.training.loop import TrainingPlan
from fewer.recommend.training.losses import LossName


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Where the interactions are and how they are read."""

    data: Path
    """Interactions: .csv .tsv .parquet .jsonl .inter .txt (and .gz of them)."""
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    dedup: bool = False
    """Drop rows that repeat user, item and time."""
    user_minimum: Annotated[int, Field(ge=1)] = 1
    """Drop users with fewer interactions (with --item-minimum, repeated until nothing changes)."""
    item_minimum: Annotated[int, Field(ge=1)] = 1
    """Drop items with fewer interactions."""

    def read(self) -> Interactions:
        """Raises `FileError` and `DataError`."""
        columns = column_names(self.user_column, self.item_column, self.time_column)
        interactions = read_interactions(self.data, columns, deduplicate=self.dedup)
        if self.user_minimum > 1 or self.item_minimum > 1:
            interactions = interactions.core(self.user_minimum, self.item_minimum)
        return interactions


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What `fewer recommend train` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: Path
    """Interactions: .csv .tsv .parquet .jsonl .inter .txt (and .gz of them)."""
    output: Path
    """Folder for the model and its report."""
    method: MethodName = "automlp"
    features: Path | None = None
    """Table of item features: an item column, every other column a feature."""
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    dedup: bool = False
    """Drop rows that repeat user, item and time."""
    user_minimum: Annotated[int, Field(ge=1)] = 1
    """Drop users with fewer interactions (with --item-minimum, repeated until nothing changes)."""
    item_minimum: Annotated[int, Field(ge=1)] = 1
    """Drop items with fewer interactions."""
    split: Literal["leave-last-out", "temporal", "everything"] = "leave-last-out"
    """`everything` learns from all and measures nothing (for deployment; set --epochs)."""
    length: Annotated[int, Field(ge=1, le=10_000)] = 50
    """How much of a history is read."""
    dim: Annotated[int, Field(ge=1, le=4096)] = 64
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    candidates: tuple[int, ...] = CANDIDATES
    """Short-term lengths to search (AutoMLP); one length means no search."""
    penalty: Annotated[float, Field(ge=0)] = 0.1
    """Cost of a longer short-term length; 0 is the paper."""
    search_epochs: Annotated[int, Field(ge=1)] = 30
    verify_search: bool = False
    """Also train every fixed length and show where the found one stands."""
    loss: LossName = "cross-entropy"
    epochs: Annotated[int, Field(ge=1)] = 200
    patience: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 1024
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    cpu_seconds: Annotated[float, Field(gt=0)] | None = None
    """Stop after so much processor time."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: DeviceName = "auto"
    resume: bool = False
    """Go on from the newest checkpoint in --output."""

    def read(self) -> Interactions:
        """The interactions, as all verbs read them."""
        return DataOptions(
            data=self.data,
            user_column=self.user_column,
            item_column=self.item_column,
            time_column=self.time_column,
            dedup=self.dedup,
            user_minimum=self.user_minimum,
            item_minimum=self.item_minimum,
        ).read()

    def sizes(self) -> Sizes:
        return Sizes(
            length=self.length,
            dim=self.dim,
            layers=self.layers,
            dropout=self.dropout,
            candidates=self.candidates,
        )

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

    def search(self) -> SearchPlan:
        return SearchPlan(
            epochs=self.search_epochs,
            penalty=self.penalty,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )


def train_command(request: TrainRequest, progress: Progress) -> dict[str, object]:
    """Trains, measures, saves the model and its report page; figures of the method and the baselines."""
    checkpoints = request.output / "checkpoints"
    if latest_checkpoint(checkpoints) is not None and not request.resume:
        raise ConfigError(
            f"{request.output} holds a started training; add --resume to go on, or give another --output"
        )
    interactions = request.read()
    settings = FitSettings(
        method=request.method,
        sizes=request.sizes(),
        training=request.training(),
        search=request.search(),
        split=request.split,
        verify_search=request.verify_search,
        features=_features(request.features, interactions),
        device=request.device,
        folder=checkpoints,
        resume=request.resume,
    )
    made = fit(interactions, settings, progress)
    made.save(request.output)
    for path in (*checkpoints.glob("step-*.safetensors"), checkpoints / "search.json"):
        path.unlink(missing_ok=True)  # the run is complete; the model holds its result
    page = write_report(made, request.output / "report.html")
    return {"output": str(request.output), "report": str(page), **_figures(made)}


def _features(path: Path | None, interactions: Interactions) -> ItemFeatures | None:
    return None if path is None else ItemFeatures.build(interactions.item_ids, read_features(path))


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
class SearchRequest:
    """What `fewer recommend search` is asked: only the length, no final training."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: Path
    """Interactions: .csv .tsv .parquet .jsonl .inter .txt (and .gz of them)."""
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    user_minimum: Annotated[int, Field(ge=1)] = 1
    item_minimum: Annotated[int, Field(ge=1)] = 1
    length: Annotated[int, Field(ge=1, le=10_000)] = 50
    dim: Annotated[int, Field(ge=1, le=4096)] = 64
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    candidates: tuple[int, ...] = CANDIDATES
    """Short-term lengths."""
    penalty: Annotated[float, Field(ge=0)] = 0.1
    """Cost of a longer length; 0 is the paper."""
    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 1024
    verify_search: bool = False
    """Also train every fixed length (for --grid-epochs) and rank the found one among them."""
    grid_epochs: Annotated[int, Field(ge=1)] = 20
    seed: Annotated[int, Field(ge=0)] = 0
    device: DeviceName = "auto"


def search_command(request: SearchRequest, progress: Progress) -> dict[str, object]:
    """The most likely length, all probabilities, and with --verify-search its rank in the grid."""
    interactions = DataOptions(
        data=request.data,
        user_column=request.user_column,
        item_column=request.item_column,
        time_column=request.time_column,
        user_minimum=request.user_minimum,
        item_minimum=request.item_minimum,
    ).read()
    sizes, notes = fitting_candidates(
        Sizes(
            length=request.length,
            dim=request.dim,
            layers=request.layers,
            dropout=request.dropout,
            candidates=request.candidates,
        )
    )
    for note in (*interactions.notes, *notes):
        progress.say(note)
    split = make_split(interactions, "leave-last-out")
    shape, device = automlp_shape(sizes, interactions.item_count), pick_device(request.device)
    plan = SearchPlan(
        epochs=request.epochs, penalty=request.penalty, batch_size=request.batch_size, seed=request.seed
    )
    found = search_length(shape, split, plan, device=device, progress=progress)
    result: dict[str, object] = {
        "short_term_length": found.length,
        "probabilities": dict(zip(map(str, found.candidates), found.probabilities, strict=True)),
        "path": found.path,
        "seconds": found.seconds,
    }
    if request.verify_search:
        training = TrainingPlan(epochs=request.grid_epochs, batch_size=request.batch_size, seed=request.seed)
        grid = verify_by_grid(shape, split, training, device=device, progress=progress)
        result["grid"] = grid
        result["rank_in_grid"] = 1 + [int(entry["length"]) for entry in grid].index(found.length)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRequest:
    """What `fewer recommend update` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: Path
    """Folder of a trained model."""
    data: Path
    """The new interactions."""
    output: Path
    """Folder for the updated model (may be --model)."""
    replay: Path | None = None
    """The earlier log: gives returning users their history and keeps old knowledge alive."""
    replay_share: Annotated[float, Field(ge=0)] = 1.0
    """Old training pairs per new one."""
    only_new_items: bool = False
    """Train nothing but the vectors of new items."""
    epochs: Annotated[int, Field(ge=1)] = 5
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-4
    batch_size: Annotated[int, Field(ge=1)] = 1024
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    device: DeviceName = "auto"


def update_command(request: UpdateRequest, progress: Progress) -> dict[str, object]:
    """Learns the new interactions on top and reports the figures before and after, on new and old targets."""
    columns = column_names(request.user_column, request.item_column, request.time_column)
    if not request.data.is_file():
        raise FileError(f"interactions {str(request.data)!r}: no such file", missing=True)
    recommender = Recommender.load(request.model, request.device)
    training = TrainingPlan(
        epochs=request.epochs,
        patience=max(2, request.epochs // 2),
        learning_rate=request.learning_rate,
        batch_size=request.batch_size,
        seed=request.seed,
    )
    plan = UpdatePlan(training=training, replay=request.replay_share, only_new_items=request.only_new_items)
    changed = update(
        recommender,
        read_interactions(request.data, columns),
        None if request.replay is None else read_interactions(request.replay, columns),
        plan,
        progress,
    )
    changed.recommender.save(request.output)
    return {
        "output": str(request.output),
        "new_items": changed.new_items,
        "new_interactions": changed.new_interactions,
        "before": changed.before,
        "after": changed.after,
    }
