"""First pass over the video: judge each frame, find its lumen, unwrap it, find its points. Workers measure
and unwrap; verdicts, which depend on the frames before, are given in the order of the video.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, UInt8

from fewer.core.errors import DataError
from fewer.core.files import read_image
from fewer.stitch.frames.field import DARK, Field, field_from_mask, find_field
from fewer.stitch.frames.quality import FrameJudge, Quality, Reason, highlight_mask, measure
from fewer.stitch.frames.source import Frame, FrameSource, every
from fewer.stitch.match.features import PairMatcher, StripView, detect, look
from fewer.stitch.mosaic.exposure import brightness_profile
from fewer.stitch.mosaic.group import AT_ONCE, TOGETHER, Group
from fewer.stitch.mosaic.journal import Journal, Line
from fewer.stitch.mosaic.segment import TrackedFrame
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import make_lens
from fewer.stitch.unfold.lumen import DepthProvider, Lumen, LumenTrack, find_lumen
from fewer.stitch.unfold.strip import StripShape, picture_coordinates, strip_shape, unwrap, unwrap_mask

if TYPE_CHECKING:
    import torch

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
        workers: Workers | None = None, onboard: "torch.device | None" = None,
    ) -> None:  # fmt: skip
        """With a `journal`, frames that it knows are not looked at again. `learned` matchers look at each
        strip once, here. Strips are unrolled in groups on the device `onboard`, if there is one.
        """
        self._source, self._options, self._depth, self._journal = source, options, depth, journal
        self._learned, self._workers = learned or {}, workers or Workers(1)
        self._onboard = onboard
        self.views: dict[tuple[int, int], View] = {}

    def __iter__(self) -> Iterator[tuple[FrameRecord, TrackedFrame | None]]:
        judges: dict[tuple[int, int], FrameJudge] = {}
        lumens: dict[tuple[int, int], LumenTrack] = {}
        looked: deque[tuple[FrameRecord, Future[TrackedFrame | None] | None]] = deque()
        group = Group(self._unrolled, self._workers)
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
            if lumen is None:
                task = None
            elif self._onboard is None or measured.line is not None:
                task = self._workers.submit(self._tracked, measured, lumen)
            else:
                task = group.add((measured, lumen), size)
            looked.append((record, task))
            while len(looked) > self._ahead(frame.picture.nbytes):
                yield _result(*looked.popleft(), group)
        while looked:
            yield _result(*looked.popleft(), group)

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
        for frame in every(self._source, select.stride):
            if frame.seconds < select.trim_seconds:
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
                waiting.append(self._workers.submit(self._measure, frame, view))
            else:
                done: Future[_Measured] = Future()
                done.set_result(_Measured(frame, view, line.quality, None, line.lumen, line))
                waiting.append(done)
            while len(waiting) > self._ahead(frame.picture.nbytes):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _measure(self, frame: Frame, view: View) -> _Measured:
        if self._onboard is None or self._depth is not None or not self._workers.has_processes:
            return _measure(frame, view, self._depth)
        quality, lumen = self._workers.apart(_figures, frame.picture, view.field)
        return _Measured(frame, view, quality, None, lumen)  # what shines is seen again on the device

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

    def _unrolled(self, members: list[tuple[_Measured, Lumen]]) -> list[TrackedFrame | None]:
        """`_tracked` of several frames of one size, on the device."""
        from fewer.stitch.device.strips import unroll

        view, frames = members[0][0].view, [measured.frame for measured, _ in members]
        poses = [view.geometry.pose_towards((lumen.x, lumen.y)) for _, lumen in members]
        pictures = [frame.picture for frame in frames]
        strips = unroll(pictures, view.field.usable, view.geometry, view.shape, poses, self._onboard)
        tasks = [
            self._workers.submit(detect, strip.padded, strip.mask, self._options.match) for strip in strips
        ]
        return [
            TrackedFrame(
                frame.index, frame.seconds, frame.picture.shape[:2], pose, strip.profile, task.result()
            )
            for frame, pose, strip, task in zip(frames, poses, strips, tasks, strict=True)
        ]

    def _ahead(self, bytes_each: int) -> int:
        """How many frames may wait; a device wants two groups of them."""
        usual = self._workers.ahead(bytes_each)
        return usual if self._onboard is None else max(usual, min(2 * TOGETHER, AT_ONCE // bytes_each))

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


def _figures(picture: np.ndarray, field: Field) -> tuple[Quality, Lumen | None]:
    """What a process answers: no picture comes back."""
    shining = highlight_mask(picture)
    return measure(picture, field.usable, shining), find_lumen(picture, field, shining)


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
    record: FrameRecord, task: Future[TrackedFrame | None] | None, group: Group
) -> tuple[FrameRecord, TrackedFrame | None]:
    if task is not None:
        group.hurry(task)
    return record, None if task is None else task.result()
