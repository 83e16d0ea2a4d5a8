"""A trained recommender: raw histories in, the user's own item ids out.

It answers for any history, also of users never seen; unknown items are skipped and counted, and an
empty history gets the popularity list, flagged as such.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.config import validate
from fewer.core.device import DeviceName, pick_device
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import inside, read_json, write_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.splits import Split
from fewer.recommend.evaluate import evaluate
from fewer.recommend.methods import (
    MethodName,
    Sizes,
    build_network,
)
from fewer.recommend.serving.index import ExactIndex, ItemIndex
from fewer.recommend.training.encoders import NetworkScorer, item_table

logger = logging.getLogger(__name__)
FORMAT = 1
MAX_CONFIG_BYTES = 512 * 2**20  # the vocabulary of a million items is about 20 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """The answer for one history."""

    items: list[str]
    """The user's own ids, best first."""
    scores: list[float]
    unknown: int
    """How many ids of the history the model has never seen (they were skipped)."""
    fallback: bool
    """True: no known item in the history, so this is the popularity list."""


@dataclass(slots=True)
class Recommender:
    """A network, the vocabulary, and what serving needs."""

    network: nn.Module
    method: MethodName
    sizes: Sizes
    item_ids: list[str]
    popularity: Float[Tensor, "items_and_padding"]
    exclude_seen: bool
    features: ItemFeatures | None = None
    report: dict[str, object] = field(default_factory=dict)
    """Figures, notes, the path of the search: what the report page shows."""
    _numbers: dict[str, int] = field(default_factory=dict, repr=False)
    _index: ItemIndex | None = field(default=None, repr=False)

    @property
    def item_count(self) -> int:
        return len(self.item_ids)

    def numbers(self, history: Sequence[object]) -> list[int]:
        """Known items of a raw history as numbers; unknown ids are left out."""
        if len(self._numbers) != len(self.item_ids):
            self._numbers = {name: i + 1 for i, name in enumerate(self.item_ids)}
        return [self._numbers[str(one)] for one in history if str(one) in self._numbers]

    def encode(self, histories: Sequence[Sequence[int]]) -> Float[Tensor, "batch dim"]:
        """Histories of item numbers -> interest vectors (the last m items are read)."""
        length = self.sizes.length
        cut = [list(one)[-length:] for one in histories]
        width = max(1, max(map(len, cut), default=1))
        padded = torch.tensor([[0] * (width - len(one)) + one for one in cut], dtype=torch.long)
        device = self.vectors().device
        self.network.eval()
        with torch.no_grad():
            return self.network(padded.reshape(-1, width).to(device))

    def vectors(self) -> Float[Tensor, "items_and_padding dim"]:
        """Item vectors; row 0 is padding."""
        return item_table(self.network, self.item_count).detach()

    def suggest(
        self,
        histories: Sequence[Sequence[object]],
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        candidates: Sequence[object] | None = None,
    ) -> list[Suggestion]:
        """The k best next items for each raw history (oldest item first).

        `exclude_seen=None` follows the data: logs in which users repeat items keep them. With `candidates`
        only those ids compete. k above the number of items gives all. Raises `ConfigError` for k < 1.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        exclude = self.exclude_seen if exclude_seen is None else exclude_seen
        known = [self.numbers(history) for history in histories]
        allowed = None if candidates is None else torch.tensor(self.numbers(candidates), dtype=torch.long)
        suggestions = []
        for start in range(0, len(histories), 256):
            part = known[start : start + 256]
            scores, items = self._best(part, k, exclude, allowed)
            for history, own, row_scores, row in zip(
                histories[start : start + 256], part, scores, items, strict=True
            ):
                suggestions.append(
                    Suggestion(
                        items=[self.item_ids[i - 1] for i in row],
                        scores=row_scores,
                        unknown=len(history) - len(own),
                        fallback=not own,
                    )
                )
        return suggestions

    def _best(
        self, known: list[list[int]], k: int, exclude: bool, allowed: Tensor | None
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Scores and item numbers, popularity where a history is empty."""
        encoded = self.encode(known)
        empty = [i for i, own in enumerate(known) if not own]
        seen = [set(own) if exclude else set() for own in known]
        if allowed is not None or self._index is None:
            all_scores = encoded @ self.vectors().T
            all_scores[empty] = self.popularity.to(all_scores)
            all_scores[:, 0] = float("-inf")
            if allowed is not None:
                mask = torch.ones(all_scores.shape[1], dtype=torch.bool)
                mask[allowed] = False
                all_scores.masked_fill_(mask.to(all_scores.device), float("-inf"))
            for row, own in enumerate(seen):
                all_scores[row, list(own)] = float("-inf")
            values, places = all_scores.topk(min(k, self.item_count), dim=1)
            return _finite(values.tolist(), places.tolist())
        most = max(map(len, seen), default=0)
        values, places = self._index.search(encoded, min(k + most, self.item_count))
        rows = [
            [(v, p + 1) for v, p in zip(vs, ps, strict=True) if p + 1 not in own][:k]
            for vs, ps, own in zip(values.tolist(), places.tolist(), seen, strict=True)
        ]
        popular = self.popularity[1:].topk(min(k, self.item_count))
        for row in empty:
            rows[row] = [
                (v, p + 1) for v, p in zip(popular.values.tolist(), popular.indices.tolist(), strict=True)
            ]
        return [[v for v, _ in row] for row in rows], [[p for _, p in row] for row in rows]

    def names(self) -> dict[str, object]:
        """What `items.json` holds: the user's own item ids, and the words of every feature."""
        features = self.features
        words = zip(features.names, features.vocabularies, strict=True) if features else ()
        return {"items": self.item_ids, "features": {name: list(listed) for name, listed in words}}

    def use_index(self, index: ItemIndex | None = None) -> None:
        """Answers through an index over the item vectors (default: the exact one in blocks)."""
        self._index = index or ExactIndex(self.vectors()[1:])

    def score(self, history: Sequence[object], items: Sequence[object]) -> list[float | None]:
        """Scores of the named items after a history; None for an item the model has never seen."""
        self.numbers([])
        scores = (self.encode([self.numbers(history)]) @ self.vectors().T)[0]
        return [float(scores[self._numbers[str(i)]]) if str(i) in self._numbers else None for i in items]

    def evaluate(
        self, split: Split, ks: Sequence[int] = (5, 10, 20), **options: object
    ) -> dict[str, float | int]:
        """Full-ranking metrics on the test targets. `split` must use this model's item numbers."""
        scorer = NetworkScorer(self.network, self.item_count)
        return evaluate(scorer, Prefixes(split, self.sizes.length), split.test, ks, **options)

    def save(self, folder: Path | str) -> Path:
        """`config.json`, `items.json` and `model.safetensors`; no user's data."""
        folder = Path(folder)
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        tensors["popularity"] = self.popularity
        for i, tokens in enumerate(self.features.tokens if self.features else ()):
            tensors[f"features.{i}"] = tokens
        config = {
            "format": FORMAT,
            "method": self.method,
            "sizes": asdict(self.sizes),
            "exclude_seen": self.exclude_seen,
            "report": self.report,
        }
        write_tensors(folder / "model.safetensors", tensors, {"fewer.kind": "recommender"})
        write_json(folder / "items.json", self.names())
        write_json(folder / "config.json", config)
        return folder

    @staticmethod
    def load(folder: Path | str, device: DeviceName = "cpu") -> "Recommender":
        """Raises `FileError` when files are missing, damaged, or do not belong together."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileError(f"no recommender in {str(folder)!r}: config.json is missing", missing=True)
        config = read_json(inside(folder, "config.json"), MAX_CONFIG_BYTES)
        names = read_json(inside(folder, "items.json"), MAX_CONFIG_BYTES)
        if config.get("format") != FORMAT or not isinstance(names.get("items"), list):
            raise FileError(f"{folder.name!r} is not a recommender of format {FORMAT}")
        sizes = validate(Sizes, config.get("sizes"))
        items = [str(one) for one in names["items"]]
        path = inside(folder, "model.safetensors")
        # what the settings imply is compared with the file before memory is taken
        header, _ = tensor_header(path)
        embedding = header.get("network.item_embedding.weight")
        if (
            embedding is None
            or len(embedding.shape) != 2
            or embedding.shape[0] not in (len(items) + 1, len(items) + 2)
        ):
            raise FileError(f"{folder.name!r}: the weights do not fit a vocabulary of {len(items)} items")
        if embedding.shape[1] != sizes.dim:
            raise FileError(
                f"{folder.name!r}: vectors have {embedding.shape[1]} channels, settings say {sizes.dim}"
            )
        tensors = read_tensors(path)
        features = _load_features(names.get("features") or {}, tensors, len(items) + 1)
        popularity = tensors.get("popularity")
        if popularity is None or popularity.shape != (len(items) + 1,):
            raise FileError(f"{folder.name!r}: the popularity of its {len(items)} items is missing or odd")
        network = build_network(str(config.get("method")), sizes, len(items), features)
        own = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise FileError(f"{folder.name!r}: {str(error).splitlines()[-1].strip()[:200]}") from error
        return Recommender(
            network=network.to(pick_device(device)).eval(),
            method=config["method"],
            sizes=sizes,
            item_ids=items,
            popularity=popularity,
            exclude_seen=bool(config.get("exclude_seen", True)),
            features=features,
            report=config.get("report", {}),
        )


def _load_features(words: object, tensors: dict[str, Tensor], rows: int) -> ItemFeatures | None:
    if not words:
        return None
    if not isinstance(words, dict) or not all(isinstance(listed, list) for listed in words.values()):
        raise FileError("the model's item features are no lists of words by name")
    for i, listed in enumerate(words.values()):
        tokens = tensors.get(f"features.{i}")
        if tokens is None:
            raise FileError(f"the model names {len(words)} item features but holds no tokens for {[i]}")
        if (
            tokens.ndim != 2
            or len(tokens) != rows
            or not bool(((tokens >= 0) & (tokens <= len(listed))).all())
        ):
            raise FileError(
                f"the tokens of item feature {i} do not fit {rows - 1} items and {len(listed)} words"
            )
    return ItemFeatures(
        names=tuple(words),
        tokens=tuple(tensors[f"features.{i}"] for i in range(len(words))),
        vocabularies=tuple(tuple(map(str, listed)) for listed in words.values()),
    )


def _finite(values: list[list[float]], places: list[list[int]]) -> tuple[list[list[float]], list[list[int]]]:
    """Drops what was masked away."""
    kept = [
        [(v, p) for v, p in zip(vs, ps, strict=True) if v != float("-inf")]
        for vs, ps in zip(values, places, strict=True)
    ]
    return [[v for v, _ in row] for row in kept], [[p for _, p in row] for row in kept]
