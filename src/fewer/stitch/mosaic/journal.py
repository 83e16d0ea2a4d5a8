"""What a run remembers of each frame while it reads a video, so that an interrupted run can go on.

One line of JSON a frame, written when the frame is done; matches and points lie in a `Store` beside it. A
line that was cut short by a kill is dropped, and with it whatever the store holds beyond the last whole line.
The video is read again from its start, but frames with a line are neither measured nor matched again: the
result is bit for bit that of an uninterrupted run.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewer.core.errors import ConfigError
from fewer.stitch.frames.quality import Quality
from fewer.stitch.mosaic.segment import Pair, Segment, TrackedFrame
from fewer.stitch.mosaic.store import Kept, Store
from fewer.stitch.unfold.lumen import Lumen

_MOST_PAIRS = 64  # of one frame: `offsets` and retries are fewer


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one frame."""

    quality: Quality
    lumen: Lumen | None
    used: bool
    began: bool
    """Whether it began a segment."""
    kept: Kept | None
    """Its first pose and brightness profile, if it was used."""
    view: Kept | None
    """Its points, if it became a keyframe."""
    pairs: list[Pair]


class Journal:
    """`lines` holds what an earlier run left (empty unless `resume`); `write` adds to it."""

    def __init__(self, folder: Path, key: str, resume: bool, views_needed: int) -> None:
        """`key` names the video and the options. Raises `ConfigError` to resume a run of anything else."""
        self._folder, self.lines = folder, dict[int, Line]()
        folder.mkdir(parents=True, exist_ok=True)
        path, kept_bytes, stored = folder / "journal.jsonl", 0, 0
        if resume and path.exists():
            kept_bytes, stored = self._read(path, key)
        self._file = path.open("r+b" if kept_bytes else "w+b", buffering=0)
        self._file.seek(kept_bytes)
        self._file.truncate()
        self.store = Store(folder / "store.bin", stored)
        if not kept_bytes:
            self._file.write(_encoded({"key": key}))
        used = [index for index, line in self.lines.items() if line.used]
        # the next frames are matched with these: their points are found again
        self.recent = set(used[-views_needed - 1 :])

    def known(self, index: int) -> Line | None:
        """The line of a frame that need not be looked at again."""
        return None if index in self.recent else self.lines.get(index)

    def frame(self, line: Line, index: int, seconds: float, size: tuple[int, int]) -> TrackedFrame | None:
        """A used frame as it was, without its view."""
        if line.kept is None:
            return None
        pose, profile = self.store.load(line.kept)
        return TrackedFrame(index, seconds, size, pose, profile, None, kept_view=line.view)

    def write(
        self,
        index: int,
        quality: Quality,
        lumen: Lumen | None,
        frame: TrackedFrame | None,
        segment: Segment | None,
    ) -> None:
        """`frame` is given when the frame was used; then `segment` is the one it ended up in."""
        fact: dict[str, object] = {
            "frame": index,
            "quality": [quality.sharpness, quality.mean, quality.spread, quality.highlight],
            "lumen": None if lumen is None else [lumen.x, lumen.y, lumen.sigma, lumen.contrast],
        }
        if frame is not None and segment is not None:
            place = len(segment.frames) - 1
            fact["began"] = place == 0
            fact["kept"] = _plain(self.store.keep(frame.pose, frame.profile))
            fact["view"] = _plain(frame.kept_view)
            fact["pairs"] = [
                [pair.first, pair.second, _plain(pair.matches), pair.count, pair.shift.tolist(), pair.counts]
                for pair in segment.pairs[-_MOST_PAIRS:]
                if pair.first == place
            ]
        fact["stored"] = self.store.size
        self._file.write(_encoded(fact))

    def close(self, done: bool) -> None:
        """Ends writing; `done` also removes the folder."""
        self._file.close()
        if done:
            # the store's open file lives on: homographies still lead to their matches
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, path: Path, key: str) -> tuple[int, int]:
        """Takes in all whole lines; returns how many bytes they fill and how much of the store they need."""
        filled, stored = 0, 0
        with path.open("rb") as file:
            for number, raw in enumerate(file):
                try:
                    fact = json.loads(raw) if raw.endswith(b"\n") else None
                    if number == 0:
                        if fact is None:
                            return 0, 0
                        if fact != {"key": key}:
                            raise ConfigError(
                                "the unfinished run in this --output is of another video or other options; "
                                "resume with what it was started with, give another --output, or leave "
                                "--resume out to begin anew"
                            )
                    else:
                        index, line, stored_after = _decoded(fact)
                        self.lines[index], stored = line, stored_after
                except ConfigError:
                    raise
                except (ValueError, TypeError, KeyError, IndexError):
                    break
                filled += len(raw)
        return filled, stored


def _encoded(fact: dict[str, object]) -> bytes:
    return json.dumps(fact, separators=(",", ":")).encode("utf-8") + b"\n"


def _plain(kept: Kept | None) -> list | None:
    return None if kept is None else [kept.offset, [[list(shape), kind] for shape, kind in kept.layout]]


def _kept(plain: list | None) -> Kept | None:
    if plain is None:
        return None
    return Kept(int(plain[0]), tuple((tuple(shape), str(kind)) for shape, kind in plain[1]))


def _decoded(fact: dict) -> tuple[int, Line, int]:
    pairs = []
    for first, second, matches, count, shift, counts in fact.get("pairs", ()):
        kept = _kept(matches)
        if kept is not None:
            pairs.append(Pair(first, second, kept, count, np.array(shift, np.float64), counts))
    line = Line(
        Quality(*fact["quality"]),
        None if fact["lumen"] is None else Lumen(*fact["lumen"]),
        "kept" in fact,
        bool(fact.get("began")),
        _kept(fact.get("kept")),
        _kept(fact.get("view")),
        pairs,
    )
    return int(fact["frame"]), line, int(fact["stored"])
