"""Where frames come from. A source can be iterated more than once and holds one picture at a time.

`open_frames` accepts a video (PyAV), a folder of pictures in natural order, a DICOM file, a text file or
list of paths, a list of arrays, or a plain iterator, which is spooled to a temporary file because the map
needs two
passes.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Num, UInt8

from fewer.core.errors import DataError, FileError
from fewer.core.files import plain_file, read_image

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
MAX_PIXELS = 16_800_000
_BLOCK = 2**16


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture, BGR 8 bit, with its number in the original video and its time in seconds."""

    index: int
    seconds: float
    picture: UInt8[np.ndarray, "height width 3"]


@runtime_checkable
class FrameSource(Protocol):
    """Anything that can be read twice. `length` may be 0 (unknown); `warnings` fills while reading."""

    length: int
    warnings: list[str]

    def __iter__(self) -> Iterator[Frame]: ...


def every(source: FrameSource, stride: int) -> Iterator[Frame]:
    """Each `stride`-th frame. Sources that can leave out the work on the others have a method `every`."""
    skipping = getattr(source, "every", None)
    return skipping(stride) if skipping is not None else islice(source, 0, None, stride)


def mark_of(source: FrameSource) -> bytes:
    """Tells sources apart without reading them whole: the sizes of their `files` and three blocks of up to 64
    of these; of arrays some pictures. Nothing for an iterator, which can be read once only."""
    digest = hashlib.sha256(str(source.length).encode())
    if isinstance(source, SpooledFrames):
        return digest.digest()
    files: Sequence[Path] = getattr(source, "files", ())
    for frame in () if files else every(source, max(1, source.length // 8)):
        digest.update(frame.picture.tobytes())
    digest.update(repr([path.stat().st_size for path in files if path.is_file()]).encode())
    for path in files[:: max(1, len(files) // 64)]:
        if path.is_file():
            with path.open("rb") as file:
                for place in (0, path.stat().st_size // 2, path.stat().st_size - _BLOCK):
                    file.seek(max(0, place))
                    digest.update(file.read(_BLOCK))
    return digest.digest()


def open_frames(source: "str | Path | Sequence | Iterable | FrameSource", rate: float = 25.0) -> FrameSource:
    """Raises FileError for a path that is missing or of no known kind; decoding errors come while
    iterating.
    """
    if isinstance(source, (str, Path)):
        return _open_path(Path(source), rate)
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, np.ndarray) or (isinstance(source, Sequence) and not isinstance(source, bytes)):
        items = list(source)
        if items and all(isinstance(item, (str, Path)) for item in items):
            return FolderFrames([Path(item) for item in items], rate)
        return ArrayFrames(items, rate)
    if isinstance(source, Iterable):
        return SpooledFrames(source, rate)
    raise FileError(f"cannot read frames from a {type(source).__name__}; give a path, a list or an iterator")


def _open_path(path: Path, rate: float) -> FrameSource:
    if not path.exists():
        raise FileError(f"{path.name}: no such file or folder", missing=True)
    if path.is_dir():
        pictures = sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURES), key=natural_key)
        if not pictures:
            raise FileError(f"{path.name}: the folder holds no pictures ({', '.join(sorted(PICTURES))})")
        return FolderFrames(pictures, rate)
    path = plain_file(path)
    suffix = path.suffix.lower()
    if suffix in {".dcm", ".dicom"} or _starts_like_dicom(path):
        from fewer.stitch.frames.dicom import open_dicom

        return open_dicom(path)
    if suffix == ".txt":
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise FileError(f"{path.name}: no list of pictures (not UTF-8 text)") from error
        return FolderFrames([path.parent / line for line in lines if line], rate)
    if suffix in PICTURES:
        return FolderFrames([path], rate)
    from fewer.stitch.frames.video import VideoFrames

    return VideoFrames(path)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def as_picture(array: Num[np.ndarray, "..."]) -> UInt8[np.ndarray, "height width 3"]:
    """Grey, alpha, 16-bit or float pictures as BGR 8 bit. Raises DataError for anything else."""
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or min(array.shape[:2]) < 2:
        raise DataError(
            f"a frame has the shape {array.shape}; allowed are (h, w), (h, w, 1), (h, w, 3), (h, w, 4)"
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise DataError(
            f"a frame has {array.shape[1]} x {array.shape[0]} pixels; at most {MAX_PIXELS} are allowed"
        )
    if array.dtype == np.uint16:
        array = array >> 8
    elif np.issubdtype(array.dtype, np.floating):
        array = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        array = np.clip(array, 0, 1) * 255 + 0.5
    elif array.dtype != np.uint8:
        array = np.clip(array, 0, 255)
    array = array.astype(np.uint8)
    if array.shape[2] == 4:
        array = array[..., :3]
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


class ArrayFrames:
    """Frames held in memory as arrays (BGR, as OpenCV reads them)."""

    def __init__(self, arrays: Sequence, rate: float = 25.0) -> None:
        self._arrays, self._rate = arrays, rate
        self.length, self.warnings = len(arrays), []

    def __iter__(self) -> Iterator[Frame]:
        for index, array in enumerate(self._arrays):
            if isinstance(array, Frame):
                yield array
            else:
                yield Frame(index, index / self._rate, as_picture(array))


class FolderFrames:
    """Picture files, each opened when its turn comes; one that cannot be read is left out with a warning."""

    def __init__(self, paths: Sequence[Path], rate: float = 25.0) -> None:
        self.files, self._rate = paths, rate
        self.length, self.warnings = len(paths), []

    def __iter__(self) -> Iterator[Frame]:
        return self.every(1)

    def every(self, stride: int) -> Iterator[Frame]:
        """Opens each `stride`-th picture only."""
        self.warnings.clear()
        for index in range(0, len(self.files), stride):
            path = self.files[index]
            try:
                picture = np.asarray(read_image(path, max_pixels=MAX_PIXELS))
            except FileError as error:
                # A file's name may be a patient's, and the warning stands in the report.
                said = str(error).replace(repr(path.name), "the picture").replace(path.name, "the picture")
                self.warnings.append(f"frame {index}: {said}")
                continue
            yield Frame(index, index / self._rate, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


class SpooledFrames:
    """An iterator that can be read once becomes a temporary file that can be read twice (lossless PNG)."""

    def __init__(self, items: Iterable, rate: float = 25.0) -> None:
        self._items: Iterator | None = iter(items)
        self._rate, self.length, self.warnings = rate, 0, []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the source
        self._entries: list[tuple[int, float, int, int]] = []

    def __iter__(self) -> Iterator[Frame]:
        if self._items is not None:
            yield from self._spool()
            return
        yield from self.every(1)

    def every(self, stride: int) -> Iterator[Frame]:
        """Decodes each `stride`-th picture only, once all have been read."""
        if self._items is not None:
            yield from islice(self._spool(), 0, None, stride)
            return
        for index, seconds, start, size in self._entries[::stride]:
            self._file.seek(start)
            data = np.frombuffer(self._file.read(size), np.uint8)
            yield Frame(index, seconds, cv2.imdecode(data, cv2.IMREAD_COLOR))

    def _spool(self) -> Iterator[Frame]:
        items, self._items = self._items, None
        for index, item in enumerate(items or ()):
            frame = item if isinstance(item, Frame) else Frame(index, index / self._rate, as_picture(item))
            data = cv2.imencode(".png", frame.picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
            start = self._file.seek(0, 2)
            self._file.write(data)
            self._entries.append((frame.index, frame.seconds, start, len(data)))
            yield frame
        self.length = len(self._entries)


def _starts_like_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
