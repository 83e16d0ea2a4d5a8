"""The k items with the highest inner product, out of a million, in milliseconds.

`ExactIndex` scans in blocks: the best k of everything lie in the k blocks with the highest maximum, so only
those are sorted. `GraphIndex` is hnswlib's navigable small-world graph.
"""

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Annotated, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json, write_json


@runtime_checkable
class ItemIndex(Protocol):
    """Anything that finds the best items for interest vectors."""

    def search(
        self, encoded: Float[Tensor, "batch dim"], k: int
    ) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        """(scores, item number - 1), best first."""
        ...


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """How the graph is built and searched."""

    neighbours: Annotated[int, Field(ge=2, le=256)] = 24
    """Links per item (M)."""
    build_width: Annotated[int, Field(ge=8, le=4096)] = 200
    """Candidates kept while building (efConstruction)."""
    search_width: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Candidates kept while searching (ef): more is slower and misses less."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1


class ExactIndex:
    """All scores, then the best k without sorting all of them."""

    def __init__(self, vectors: Float[Tensor, "items dim"], block: int = 1024) -> None:
        self.vectors, self.block = vectors.float().contiguous(), block

    def search(
        self, encoded: Float[Tensor, "batch dim"], k: int
    ) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        check_k(k, len(self.vectors))
        vectors = self.vectors
        if len(encoded) == 1:  # a matrix-vector product reads the table once, at memory speed
            scores = (vectors @ encoded[0].to(vectors))[None]
        else:
            scores = encoded.to(vectors) @ vectors.T
        return top_k_in_blocks(scores, k, self.block)


def top_k_in_blocks(
    scores: Float[Tensor, "batch items"], k: int, block: int = 1024
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """Exact top-k. The best k lie in the k blocks with the highest maximum, because a block outside of them
    has k blocks before it, each with an item at least as good."""
    batch, items = scores.shape
    blocks = items // block
    if blocks <= k:
        values, places = scores.topk(k, dim=1)
        return values, places
    body = scores[:, : blocks * block].reshape(batch, blocks, block)
    best_blocks = body.amax(2).topk(k, dim=1).indices
    places = (best_blocks[:, :, None] * block + torch.arange(block, device=scores.device)).flatten(1)
    tail = torch.arange(blocks * block, items, device=scores.device).expand(batch, -1)
    places = torch.cat([places, tail], dim=1)
    values, chosen = scores.gather(1, places).topk(k, dim=1)
    return values, places.gather(1, chosen)


class GraphIndex:
    """Approximate search through hnswlib (inner product)."""

    def __init__(
        self, vectors: Float[Tensor, "items dim"], plan: GraphPlan | None = None, seed: int = 0
    ) -> None:
        self.plan, self.items, self.dim = plan or GraphPlan(), len(vectors), vectors.shape[1]
        self._graph = _hnswlib().Index(space="ip", dim=self.dim)
        self._graph.init_index(
            max_elements=self.items,
            M=self.plan.neighbours,
            ef_construction=self.plan.build_width,
            random_seed=seed,
        )
        self._graph.add_items(vectors.float().cpu().numpy(), num_threads=self.plan.threads)

    def search(
        self, encoded: Float[Tensor, "batch dim"], k: int
    ) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        check_k(k, self.items)
        self._graph.set_ef(max(self.plan.search_width, k))
        places, distances = self._graph.knn_query(
            encoded.float().cpu().numpy(), k=k, num_threads=self.plan.threads
        )
        return 1.0 - torch.from_numpy(distances), torch.from_numpy(places.astype("int64"))

    def save(self, path: Path) -> None:
        """hnswlib's own file, and beside it a note with its sizes and checksum."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._graph.save_index(str(path))
        note = {"kind": "graph", "items": self.items, "dim": self.dim, "sha256": digest(path)}
        write_json(note_beside(path), note)

    @staticmethod
    def load(path: Path, items: int, dim: int, plan: GraphPlan | None = None) -> "GraphIndex":
        """Raises `FileError` when the file is missing, damaged, or of another model.

        hnswlib trusts what it reads, so the checksum is compared first; load only files you wrote.
        """
        verified_note(path, items, dim)
        index = GraphIndex.__new__(GraphIndex)
        index.plan, index.items, index.dim = plan or GraphPlan(), items, dim
        index._graph = _hnswlib().Index(space="ip", dim=dim)
        index._graph.load_index(str(path), max_elements=items)
        return index


def note_beside(path: Path) -> Path:
    """`items.scan.json` beside `items.scan`: `items.json` holds the ids."""
    return path.with_name(path.name + ".json")


def verified_note(path: Path, items: int, dim: int) -> dict[str, object]:
    """What was noted beside an index file. Raises `FileError` when the file is missing, damaged, or of a
    model of other sizes."""
    path = Path(path)
    if not path.is_file():
        raise FileError(
            f"index {path.name!r} is not there; build it with `fewer recommend export`", missing=True
        )
    if not note_beside(path).is_file():
        raise FileError(
            f"index {path.name!r} has no {note_beside(path).name} beside it; export it again", missing=True
        )
    note = read_json(note_beside(path))
    if (note.get("items"), note.get("dim")) != (items, dim):
        raise FileError(f"index {path.name!r} does not belong to a model of {items} items of {dim} channels")
    if note.get("sha256") != digest(path):
        raise FileError(f"index {path.name!r} is damaged (checksum); export it again")
    return note


def recall(found: Int[Tensor, "batch k"], true: Int[Tensor, "batch k"]) -> float:
    """Mean share of the true items that were found."""
    hits = (found[:, :, None] == true[:, None, :]).any(1)
    return float(hits.float().mean())


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hnswlib() -> ModuleType:
    try:
        import hnswlib
    except ModuleNotFoundError as error:
        raise FileError(
            "the graph index needs hnswlib: pip install 'fewer[recommend]', or use exact search",
            missing=True,
        ) from error
    return hnswlib


def check_k(k: int, items: int) -> None:
    """Raises `ConfigError` unless 1 <= k <= items."""
    if not 1 <= k <= items:
        raise ConfigError(f"k must be between 1 and the number of items {items}, got {k}")
