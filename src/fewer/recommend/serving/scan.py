"""Approximate search without a graph: two bits a channel, all items scanned, the best re-ranked exactly.

faiss holds every pair of channels as one of sixteen points and adds up table look-ups in vector registers:
a million items of 64 channels are read as 16 MB. Building takes seconds, where a graph takes minutes, and
recall hardly depends on how the vectors lie: a graph needs clusters to walk along, a scan does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fewer.core.errors import FileError
from fewer.core.files import write_json
from fewer.recommend.serving.index import check_k, digest, note_beside, verified_note

TRAINING_ITEMS = 100_000
KIND = "scan"


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """How the scan is built and searched."""

    rerank: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """Candidates whose exact scores are computed: more is slower and misses less."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1


class ScanIndex:
    """Approximate search through faiss (inner product), exact scores for what it returns."""

    def __init__(self, vectors: Float[Tensor, "items dim"], plan: ScanPlan | None = None) -> None:
        self.plan, self.vectors = plan or ScanPlan(), vectors.float().cpu().contiguous()
        faiss, (items, dim) = _faiss(), self.vectors.shape
        with _threads(faiss, self.plan.threads):
            parts = dim // 2 if dim % 2 == 0 else dim
            self._codes = faiss.IndexPQFastScan(dim, parts, 4, faiss.METRIC_INNER_PRODUCT)
            self._codes.pq.cp.min_points_per_centroid = 1  # a small shop is no reason to warn
            step = max(1, items // TRAINING_ITEMS)
            # sixteen values need sixteen items; fewer are repeated
            sample = self.vectors[::step].repeat(-(-16 // items), 1)
            self._codes.train(sample.numpy())
            self._codes.add(self.vectors.numpy())

    def search(
        self, encoded: Float[Tensor, "batch dim"], k: int
    ) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        """(exact scores, item number - 1), best first. Raises `ConfigError` when k does not fit."""
        items = len(self.vectors)
        check_k(k, items)
        asked = encoded.float().cpu().contiguous()
        wanted = min(max(self.plan.rerank, k), items)
        if wanted == items:
            places = torch.arange(items).expand(len(asked), -1)
        else:
            faiss = _faiss()
            with _threads(faiss, self.plan.threads):
                places = torch.from_numpy(self._codes.search(asked.numpy(), wanted)[1])
        scores = torch.einsum("bcd,bd->bc", self.vectors[places.clamp(min=0)], asked)
        values, chosen = scores.masked_fill(places < 0, float("-inf")).topk(k, dim=1)
        return values, places.gather(1, chosen)

    def save(self, path: Path) -> None:
        """faiss's own file, and beside it a note with its sizes and checksum; the vectors are the model's."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _faiss().write_index(self._codes, str(path))
        items, dim = self.vectors.shape
        note = {"kind": KIND, "items": items, "dim": dim, "sha256": digest(path)}
        write_json(note_beside(path), note)

    @staticmethod
    def load(path: Path, vectors: Float[Tensor, "items dim"], plan: ScanPlan | None = None) -> "ScanIndex":
        """Raises `FileError` when the file is missing, damaged, or of another model.

        faiss trusts what it reads, so the checksum is compared first; load only files you wrote.
        """
        verified_note(path, *vectors.shape)
        index = ScanIndex.__new__(ScanIndex)
        index.plan, index.vectors = plan or ScanPlan(), vectors.float().cpu().contiguous()
        index._codes = _faiss().read_index(str(path))
        return index


@contextmanager
def _threads(faiss: ModuleType, count: int) -> Iterator[None]:
    """faiss's number of threads belongs to the process; it is handed back as it was."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise FileError(
            "the scan index needs faiss: pip install 'fewer[recommend]', or use exact search", missing=True
        ) from error
    return faiss
