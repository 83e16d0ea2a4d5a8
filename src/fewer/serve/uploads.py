"""Files that clients send for other rooms' work: each under a name of ours, readable by its owner alone."""

import contextlib
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from fewer.core.errors import CapacityError, FileError

SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".dcm", ".png", ".jpg", ".jpeg", ".webp")

MAX_FILES = 10_000
"""Of one owner: many small ones fill a disk's table of files before its room."""
CHECK_BYTES = 8 * 2**20
"""After so many more the owner's room is looked at again."""


class Uploads:
    """The folder of uploads, one folder in it for each owner."""

    def __init__(self, folder: Path, max_bytes: int = 2 * 2**30) -> None:
        """`max_bytes` is what all uploads of one owner may hold together."""
        self._folder, self._max = folder, max_bytes

    async def receive(self, owner: str, suffix: str, chunks: AsyncIterator[bytes]) -> dict[str, object]:
        """Writes what comes, counted while it comes; gives its `id` and `bytes`.

        Raises `FileError` for a suffix that no room reads, `CapacityError` when the owner's room is full.
        """
        if suffix.lower() not in SUFFIXES:
            raise FileError(f"files ending in {suffix[:20]!r} are not taken; allowed: {', '.join(SUFFIXES)}")
        folder = self._folder / owner
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if sum(1 for _ in folder.iterdir()) >= MAX_FILES:
            raise CapacityError(f"{MAX_FILES:,} uploads are kept already; delete some")
        identity = uuid.uuid4().hex + suffix.lower()
        size, checked, room = 0, 0, self._max - _size(folder)
        part = folder / f"{identity}.part"
        try:
            with part.open("wb", buffering=0) as stream:
                async for chunk in chunks:
                    size += len(chunk)
                    if size - checked > CHECK_BYTES:  # others of the same owner may be coming too
                        checked, room = size, self._max - _size(folder, but=part)
                    if size > room:
                        raise CapacityError(f"uploads may hold {self._max:,} bytes together; delete some")
                    stream.write(chunk)
            if not size:
                raise FileError("the upload was empty; send the file as the body")
            part.rename(folder / identity)
        finally:
            part.unlink(missing_ok=True)
        return {"id": identity, "bytes": size}

    def path(self, owner: str, identity: str) -> Path:
        """Where an upload lies. Raises `FileError` for one that is not theirs."""
        path = self._folder / owner / identity
        if not re.fullmatch(r"[0-9a-f]{32}\.[a-z0-9]{3,4}", identity) or not path.is_file():
            raise FileError(f"there is no upload {identity[:40]!r} of yours", missing=True)
        return path

    def drop(self, owner: str, identity: str) -> None:
        """Deletes an upload. Raises `FileError` as `path` does."""
        self.path(owner, identity).unlink(missing_ok=True)

    def forget(self, older_than_seconds: float | int) -> None:
        """Deletes uploads older than that."""
        for file in self._folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < time.time() - older_than_seconds:
                    file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Deletes everything."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _size(folder: Path, but: Path | None = None) -> int:
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # deleted a moment ago
            total += 0 if file == but else file.stat().st_size
    return total
