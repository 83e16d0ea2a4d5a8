"""Options that several verbs share: the log, and the model. A request inherits what it needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tyro.conf import Positional

from fewer.core.device import DeviceName, FullPrecision
from fewer.core.errors import ConfigError
from fewer.recommend.automlp import CANDIDATES
from fewer.recommend.data.features import ItemFeatures, read_features
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.reading import column_names, read_interactions
from fewer.recommend.methods import Sizes
from fewer.recommend.search import Relaxation, SearchPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What every verb that computes has."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Makes a run repeatable."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: FullPrecision = "auto"
    """Everything here computes in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions(RunOptions):
    """Where the interactions are and what their columns are called."""

    log: Positional[Path | None] = None
    """Interactions: .csv .tsv .parquet .jsonl .inter .txt (and .gz of them)."""
    data: Path | None = None
    """The same as an option, as the other verbs have it."""
    user_column: str | None = None
    """Found by its usual names if absent."""
    item_column: str | None = None
    """As --user-column."""
    time_column: str | None = None
    """As --user-column; without one the order of rows counts."""

    def file(self) -> Path:
        """The log. Raises `ConfigError` unless exactly one was given."""
        if (self.log is None) == (self.data is None):
            given = "no log was given" if self.log is None else "two logs were given"
            raise ConfigError(f"{given}; name one file of interactions, as LOG or as --data LOG")
        path = self.log or self.data
        assert path is not None
        return path

    def read(self) -> Interactions:
        """Raises `FileError`, `DataError`, and `ConfigError` for a column named twice or no log."""
        return read_interactions(
            self.file(), column_names(self.user_column, self.item_column, self.time_column)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningOptions(LogOptions):
    """The log of a training, which may be cleaned, and the sizes of the network."""

    dedup: bool = False
    """Drop rows that repeat user, item and time."""
    user_minimum: Annotated[int, Field(ge=1)] = 1
    """Drop users with fewer interactions (with --item-minimum, repeated until nothing changes)."""
    item_minimum: Annotated[int, Field(ge=1)] = 1
    """Drop items with fewer interactions."""
    features: Path | None = None
    """Table of item features: an item column, every other column a feature."""
    length: Annotated[int, Field(ge=1, le=10_000)] = 50
    """How much of a history is read."""
    dim: Annotated[int, Field(ge=1, le=4096)] = 64
    """Width of the network."""
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    """Depth of the network."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of values that training leaves out."""
    candidates: tuple[int, ...] = CANDIDATES
    """Short-term lengths to search (AutoMLP); one length means no search."""
    penalty: Annotated[float, Field(ge=0)] = 0.1
    """Cost of the longest short-term length, as a share of what the best one wins over the worst; 0 is the
    paper."""
    relaxation: Relaxation = "expectation"
    """Lengths judged one by one, or mixed in training too (DARTS)."""
    finalists: Annotated[int, Field(ge=1)] = SearchPlan().finalists
    """At most so many lengths that the search cannot tell apart are tried out; 1 keeps the most likely."""
    verify_search: bool = False
    """Also train every fixed length and show where the found one stands."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    """Training pairs a step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Of the optimizer."""

    def read(self) -> Interactions:
        columns = column_names(self.user_column, self.item_column, self.time_column)
        interactions = read_interactions(self.file(), columns, deduplicate=self.dedup)
        if self.user_minimum > 1 or self.item_minimum > 1:
            interactions = interactions.core(self.user_minimum, self.item_minimum)
        return interactions

    def item_features(self, interactions: Interactions) -> ItemFeatures | None:
        """The features of the log's items, if a table was given. Raises `FileError`."""
        if self.features is None:
            return None
        return ItemFeatures.build(interactions.item_ids, read_features(self.features))

    def sizes(self) -> Sizes:
        return Sizes(
            length=self.length,
            dim=self.dim,
            layers=self.layers,
            dropout=self.dropout,
            candidates=self.candidates,
        )

    def search_plan(self, epochs: int) -> SearchPlan:
        return SearchPlan(
            epochs=epochs,
            relaxation=self.relaxation,
            penalty=self.penalty,
            finalists=self.finalists,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )
