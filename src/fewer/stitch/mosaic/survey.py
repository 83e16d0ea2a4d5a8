"""First pass over the video: judge each frame, find its lumen, unwrap it, find its points. Workers measure
and unwrap; verdicts, which depend on the frames before, are given in the order of the video.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from fewer.core.errors import DataError
from fewer.core.files import read_image
from fewer.stitch.frames.field import DARK, Field, field_from_mask, find_field
from fewer.stitch.frames.quality import FrameJudge, Quality, Reason, highlight_mask, measure
from fewer.stitch.frames.source import Frame, FrameSource
from fewer.stitch.match.features import PairMatcher, StripView, look
from fewer.stitch.mosaic.exposure import brightness_profile
from fewer.stitch.mosaic.journal import Journal, Line
from fewer.stitch.mosaic.segment import TrackedFrame
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import make_lens
from fewer.stitch.unfold.lumen import DepthProvider, Lumen, LumenTrack, find_lumen
from fewer.stitch.unfold.strip import StripShape, picture_coordinates, strip_shape, unwrap, unwrap_mask

_FIELD_FRAMES = 30


@dataclass(slots=True)
class FrameRecord:
    """One line of the report: what became of a frame."""

    index: int
    seconds: float
    reason: Reason
    quality: Quality
    lumen: Lumen | None = None
    used: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Field, geometry and strip shape of all frames of one size."""

    field: Field
    geometry: Geometry
    shape: StripShape


@dataclass(frozen=True, slots=True)
class _Measured:
    frame: Frame
    view: View
    quality: Quality
    shining: np.ndarray | None
    lumen: Lumen | None
    line: Line | None = None


class Survey:
    """Iterate to get (record, tracked frame or None) for each frame that the stride picks."""

    def __init__(
        self, source: FrameSource, options: StitchOptions, depth: DepthProvider | None = None,
        journal: Journal | None = None, learned: Mapping[str, PairMatcher] | None = None,
        workers: Workers | None = None,
    ) -> None:  # fmt: skip
        """With a `journal`, frames that it knows are not looked at again. `learned` matchers look at each
        strip once, here.
        """
        self._source, self._options, self._depth, self._journal = source, options, depth, journal
        self._learned, self._workers = learned or {}, workers or Workers(1)
        self.views: dict[tuple[int, int], View] = {}

    def __iter__(self) -> Iterator[tuple[FrameRecord, TrackedFrame | None]]:
        judges: dict[tuple[int, int], FrameJudge] = {}
        lumens: dict[tuple[int, int], LumenTrack] = {}
        looked: deque[tuple[FrameRecord, Future[TrackedFrame | None] | None]] = deque()
        for measured in self._measured():
            size = measured.frame.picture.shape[:2]
            judge = judges.setdefault(size, FrameJudge(self._options.select))
            reason = judge.verdict(measured.quality, measured.frame.picture)
            lumen = None
            if not reason:
                lumen = lumens.setdefault(size, LumenTrack()).update(measured.lumen)
                reason = "" if lumen is not None else "no lumen"
            frame = measured.frame
            record = FrameRecord(frame.index, frame.seconds, reason, measured.quality, measured.lumen)
            task = None if lumen is None else self._workers.submit(self._tracked, measured, lumen)
            looked.append((record, task))
            while len(looked) > self._workers.ahead(frame.picture.nbytes):
                yield _result(*looked.popleft())
        while looked:
            yield _result(*looked.popleft())

    def view_of(self, picture: UInt8[np.ndarray, "height width 3"]) -> View:
        """The view for frames of this size, found when the first of them comes."""
        size = picture.shape[:2]
        if size not in self.views:
            self.views[size] = self._find_view(size)
        return self.views[size]

    def picked(self) -> Iterator[Frame]:
        """Frames the stride, the trim and the limit let through."""
        select = self._options.select
        count = 0
        for place, frame in enumerate(self._source):
            if place % select.stride or frame.seconds < select.trim_seconds:
                continue
            yield frame
            count += 1
            if count >= select.max_frames:
                return

    def _measured(self) -> Iterator[_Measured]:
        waiting: deque[Future[_Measured]] = deque()
        for frame in self.picked():
            view = self.view_of(frame.picture)
            line = None if self._journal is None else self._journal.known(frame.index)
            if line is None:
                waiting.append(self._workers.submit(_measure, frame, view, self._depth))
            else:
                done: Future[_Measured] = Future()
                done.set_result(_Measured(frame, view, line.quality, None, line.lumen, line))
                waiting.append(done)
            while len(waiting) > self._workers.ahead(frame.picture.nbytes):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _tracked(self, measured: _Measured, lumen: Lumen) -> TrackedFrame | None:
        frame = measured.frame
        if measured.line is not None and self._journal is not None:
            return self._journal.frame(measured.line, frame.index, frame.seconds, frame.picture.shape[:2])
        tracked = tracked_frame(measured, lumen, self._options)
        if tracked.view is not None:
            for matcher in self._learned.values():
                if matcher.together == 1:  # groups are looked at by `foresight`
                    matcher.look([tracked.view])
        return tracked

    def _find_view(self, size: tuple[int, int]) -> View:
        options = self._options.unfold
        mask_path = self._options.select.mask
        if mask_path is not None:
            mask = np.asarray(read_image(mask_path)).max(axis=2) > 127
            if mask.shape != size:
                raise DataError(
                    f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels "
                    f"but the frames have {size[1]} x {size[0]}"
                )
            field = field_from_mask(mask)
        else:
            field = find_field(self._spread_pictures(size), self._options.seed)
        lens = make_lens(options, field.radius)
        geometry = Geometry(options.unwrap, lens, field.centre, field.radius, options.depth)
        return View(field, geometry, strip_shape(geometry, options.strip_width))

    def _spread_pictures(self, size: tuple[int, int]) -> list[np.ndarray]:
        """About thirty pictures of this size from the first 300 such frames that are not black."""
        length = self._source.length or 300
        step = max(1, min(length, 300) // _FIELD_FRAMES)
        pictures, dark, seen = [], [], 0
        # a one-shot iterator is spooled by its first reading: that pass must reach the end
        whole = not self._source.length
        for frame in self._source:
            if frame.picture.shape[:2] != size:
                continue
            if frame.picture.max() < DARK:  # before the scope is switched on nothing shows the field
                dark = dark or [frame.picture]
                continue
            if seen % step == 0 and len(pictures) < _FIELD_FRAMES:
                pictures.append(frame.picture)
            seen += 1
            if len(pictures) >= _FIELD_FRAMES and not whole:
                break
        return pictures or dark


def _measure(frame: Frame, view: View, depth: DepthProvider | None) -> _Measured:
    shining = highlight_mask(frame.picture)
    quality = measure(frame.picture, view.field.usable, shining)
    lumen = find_lumen(frame.picture, view.field, shining, depth)
    return _Measured(frame, view, quality, shining, lumen)


def tracked_frame(measured: _Measured, lumen: Lumen, options: StitchOptions) -> TrackedFrame:
    """Unwrap towards the lumen, equalise, detect."""
    view = measured.view
    pose = view.geometry.pose_towards((lumen.x, lumen.y))
    places = picture_coordinates(view.geometry, view.shape, pose)
    strip = unwrap(measured.frame.picture, places)
    clear = view.field.usable if measured.shining is None else view.field.usable & ~measured.shining
    mask: Bool[np.ndarray, "h w"] = unwrap_mask(clear, places)
    seen: StripView = look(strip, mask, options.match)
    profile = brightness_profile(strip, mask).astype(np.float32)
    frame = measured.frame
    return TrackedFrame(frame.index, frame.seconds, frame.picture.shape[:2], pose, profile, seen)


def _result(
    record: FrameRecord, task: Future[TrackedFrame | None] | None
) -> tuple[FrameRecord, TrackedFrame | None]:
    return record, None if task is None else task.result()
