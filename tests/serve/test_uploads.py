import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fewer.core.errors import CapacityError, FileError
from fewer.serve.uploads import Uploads


def receive(uploads: Uploads, data: bytes, suffix: str = ".png", owner: str = "ann") -> dict:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 7):
            yield data[start : start + 7]

    return asyncio.run(uploads.receive(owner, suffix, chunks()))


def test_what_came_is_there_and_only_for_its_owner(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    kept = receive(uploads, b"0123456789" * 10, ".MP4")
    assert kept["bytes"] == 100 and kept["id"].endswith(".mp4")
    assert uploads.path("ann", kept["id"]).read_bytes() == b"0123456789" * 10
    for owner, name in (("ben", kept["id"]), ("ann", "../jobs.sqlite"), ("ann", "x.mp4"), ("ann", "")):
        with pytest.raises(FileError, match="no upload"):
            uploads.path(owner, name)
    uploads.drop("ann", kept["id"])
    with pytest.raises(FileError):
        uploads.path("ann", kept["id"])


def test_a_full_room_and_a_strange_suffix_leave_nothing_behind(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, max_bytes=100)
    receive(uploads, b"x" * 80)
    with pytest.raises(CapacityError, match="100 bytes"):
        receive(uploads, b"x" * 30)
    with pytest.raises(FileError, match=r"\.exe"):
        receive(uploads, b"x", ".exe")
    assert len(list(tmp_path.glob("ann/*"))) == 1
    assert receive(uploads, b"x" * 30, owner="ben")["bytes"] == 30, "each owner has room of their own"


def test_old_ones_are_forgotten(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    old, new = receive(uploads, b"old")["id"], receive(uploads, b"new")["id"]
    os.utime(uploads.path("ann", old), (time.time() - 1000,) * 2)
    uploads.forget(500)
    assert [file.name for file in tmp_path.glob("ann/*")] == [new]


def test_uploads_that_come_at_the_same_time_share_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewer.serve.uploads.CHECK_BYTES", 10)
    uploads = Uploads(tmp_path, max_bytes=100)

    async def dripping() -> AsyncIterator[bytes]:
        for _ in range(9):
            await asyncio.sleep(0)
            yield b"x" * 8

    async def both() -> list:
        coming = [uploads.receive("ann", ".png", dripping()) for _ in range(2)]
        return await asyncio.gather(*coming, return_exceptions=True)

    ended = asyncio.run(both())
    assert any(isinstance(end, CapacityError) for end in ended)
    assert sum(file.stat().st_size for file in tmp_path.glob("ann/*")) <= 100


def test_a_file_that_goes_while_it_is_counted_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(tmp_path)
    gone = uploads.path("ann", str(receive(uploads, b"x")["id"]))
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([gone]))
    gone.unlink()
    assert receive(uploads, b"y")["bytes"] == 1
