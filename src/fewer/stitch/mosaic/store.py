"""Where large things live: arrays in files that can be put out of memory and come back when touched.

What grows with the length of a video (a map, matches, points of keyframes) is kept on disk, so that memory
does not grow with it.
"""

import math
import mmap
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped


def zeros(shape: tuple[int, ...], kind: type | np.dtype, on_disk: bool) -> np.ndarray:
    """Zeros in memory, or in a file that vanishes with the array."""
    if not on_disk:
        return np.zeros(shape, kind)
    with tempfile.NamedTemporaryFile(prefix="fewer-map-") as file:
        return np.memmap(file, kind, "w+", shape=shape)


def put_out(*arrays: np.ndarray) -> None:
    """Drops the pages of on-disk arrays from this process; their contents stay in the file."""
    for array in arrays:
        held = getattr(array, "_mmap", None)
        if isinstance(held, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            held.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class Kept:
    """Some arrays in a `Store`: where they begin, and the shape and type of each."""

    offset: int
    layout: tuple[tuple[tuple[int, ...], str], ...]


class Store:
    """An append-only file of arrays. Reading and writing one costs microseconds; nothing stays in memory."""

    def __init__(self, path: Path | None = None, size: int = 0) -> None:
        """A temporary file, or the one at `path`, of which the first `size` bytes hold."""
        self._file: BinaryIO
        if path is None:
            self._file = tempfile.TemporaryFile(prefix="fewer-store-", buffering=0)  # noqa: SIM115 - lives on
        else:
            path.touch()
            self._file = path.open("r+b", buffering=0)
            self._file.truncate(size)
        self.size = size
        self._one_at_a_time = Lock()

    def keep(self, *arrays: Shaped[np.ndarray, "..."]) -> Kept:
        """Appends arrays."""
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        layout = tuple((array.shape, array.dtype.str) for array in arrays)
        with self._one_at_a_time:
            kept = Kept(self.size, layout)
            self._file.seek(self.size)
            self._file.write(data)
            self.size += len(data)
        return kept

    def load(self, kept: Kept) -> list[np.ndarray]:
        """Copies of what `keep` was given."""
        counts = [math.prod(shape) * np.dtype(kind).itemsize for shape, kind in kept.layout]
        with self._one_at_a_time:
            self._file.seek(kept.offset)
            data = bytearray(self._file.read(sum(counts)))
        out, start = [], 0
        for (shape, kind), count in zip(kept.layout, counts, strict=True):
            out.append(np.frombuffer(data, kind, count // np.dtype(kind).itemsize, start).reshape(shape))
            start += count
        return out
