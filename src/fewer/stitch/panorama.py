"""video -> frames -> unfolded strips -> matches -> homographies -> panorama: the journey, in the order of
the code.

1. `open_frames` gives a source that can be read twice, one frame in memory.
2. `Survey` (first pass) finds the field of view, rejects blurred and blank frames, finds the lumen, unwraps
each frame into a strip of wall and finds its points.
3. `Tracker` matches strips through the pool of filters and opens a new segment where the chain breaks.
4. `settle` finds the camera's pose in the tube for all frames of a segment at once, with loops, and the
lens if asked. 5. `fit_pair` computes the density-weighted homography of each pair, in strips unwrapped
through those poses.
6. `Canvas` (second pass) lays the frames down and remembers for every map pixel where it came from.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, UInt8

from fewer.core.errors import DataError
from fewer.core.progress import Progress, SilentProgress
from fewer.stitch.frames.source import FrameSource, mark_of, open_frames
from fewer.stitch.match.features import PairMatcher
from fewer.stitch.mosaic.canvas import Canvas, Provenance
from fewer.stitch.mosaic.exposure import Exposure, fit_exposure
from fewer.stitch.mosaic.foresight import Foresight
from fewer.stitch.mosaic.journal import Journal, Line
from fewer.stitch.mosaic.layout import Layout
from fewer.stitch.mosaic.paint import lay_down, lay_down_together
from fewer.stitch.mosaic.pairs import PairResult, fit_pairs
from fewer.stitch.mosaic.segment import Segment, TrackedFrame
from fewer.stitch.mosaic.settle import settle
from fewer.stitch.mosaic.survey import FrameRecord, Survey
from fewer.stitch.mosaic.track import Tracker, views_needed
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import StitchOptions
from fewer.stitch.output.thumbnail import Thumbnail
from fewer.stitch.report import make_report
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lumen import DepthProvider
from fewer.stitch.unfold.strip import StripShape

if TYPE_CHECKING:
    import torch

    from fewer.stitch.device.canvas import DeviceCanvas

Onboard = Literal["auto", "off", "cpu", "cuda"]
_LOOKED_BACK = 3  # segments that a new one is compared with


@dataclass(frozen=True, slots=True)
class SegmentMap:
    """One uninterrupted piece of the tube: its picture, where each pixel came from, and how it was put
    together.
    """

    image: UInt8[np.ndarray, "height width 3"]
    provenance: Provenance
    frames: list[int]
    seconds: list[float]
    poses: Float[np.ndarray, "frames 6"]
    pairs: list[PairResult]
    geometry: Geometry
    shape: StripShape
    top: float
    rms: float


@dataclass(frozen=True, slots=True)
class Panorama:
    """What `stitch` returns: `image` and `provenance` are those of the longest segment; pictures are BGR."""

    image: UInt8[np.ndarray, "height width 3"]
    provenance: Provenance
    segments: list[SegmentMap]
    report: dict[str, object]
    thumbnails: dict[int, Thumbnail]


def stitch(
    frames: "str | Path | Sequence | Iterable | FrameSource",
    options: StitchOptions | None = None,
    *,
    progress: Progress | None = None,
    depth: DepthProvider | None = None,
    work: Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    onboard: Onboard = "auto",
) -> Panorama:
    """Map of the tube's wall from an endoscopy video, a folder of frames, a DICOM file, or arrays (BGR).

    `depth` replaces the built-in lumen finder: picture -> relative depth, larger = deeper.
    `work` is a folder in which the run remembers each frame it has done; with `resume` it goes on from there,
    and when it ends the folder is removed. `workers` threads share the work (default: as many as there are
    processors, at most sixteen); the map is the same with any number of them, on the processor bit for bit.
    `onboard` is where the work on pixels is done in torch, many frames at a time: `auto` is the GPU when the
    options' device is one (and something learned runs there, or it was asked for by name); `off` leaves it
    to OpenCV. With learned matchers both paths agree to rounding; corners of SIFT and ORB hang on single grey
    levels, and so do the poses found from them, a little.
    Raises FileError for sources that cannot be read and DataError when fewer than two frames can be joined.
    """
    options = options or StitchOptions()
    progress = progress or SilentProgress()
    source = open_frames(frames)
    warnings: list[str] = []
    device = _device(options, onboard)
    done, journal = False, None
    try:
        # the crew first: what a GPU's context holds would make its processes slow to divide
        with Workers(workers, apart=device is not None) as crew:
            options, learned = _with_matchers(options, warnings, device is not None)
            if work is not None:
                journal = Journal(work, _key(source, options), resume, views_needed(options))
            tracker = Tracker(options, learned, None if journal is None else journal.store, crew)
            survey = Survey(source, options, depth, journal, learned, crew, device)
            ahead = Foresight(survey, tracker, options, learned, crew)
            records = _follow(
                ahead, survey, tracker, progress, source.length // options.select.stride, journal
            )
            noticed = list(dict.fromkeys(source.warnings))  # reading again may say everything again
            segments = _joined(tracker, [each for each in tracker.segments if len(each.frames) > 1])
            done = not segments  # trying again would end the same way
            if not segments:
                raise DataError(_refusal(records, noticed))
            maps, thumbnails = _paint(survey, tracker, segments, records, options, progress, crew, device)
        done = True
    finally:
        if journal is not None:
            journal.close(done)
    longest = max(maps, key=lambda piece: len(piece.frames))
    report = make_report(maps, records, options, [*noticed, *warnings])
    return Panorama(longest.image, longest.provenance, maps, report, thumbnails)


def _key(source: FrameSource, options: StitchOptions) -> str:
    """Names a video and options without giving either away: a journal is of use to the same two only."""
    return hashlib.sha256(repr(options).encode("utf-8") + mark_of(source)).hexdigest()


def _device(options: StitchOptions, onboard: Onboard) -> "torch.device | None":
    """Where pixels are worked on in torch, None for OpenCV."""
    wanted = options.match.device if onboard == "auto" else onboard
    unasked = wanted == "auto" and set(options.match.matchers) <= {"sift", "orb"}
    if onboard == "off" or unasked or (onboard == "auto" and wanted == "cpu"):
        return None
    from fewer.core.device import pick_device  # torch: seconds of start-up

    device = pick_device(wanted)
    return None if onboard == "auto" and device.type == "cpu" else device


def _with_matchers(
    options: StitchOptions, warnings: list[str], batched: bool
) -> tuple[StitchOptions, Mapping[str, PairMatcher]]:
    """The learned matchers asked for, and the options without those that are missing."""
    if set(options.match.matchers) <= {"sift", "orb"}:
        return options, {}
    from fewer.stitch.match.learned import fallback, load_matchers  # torch: seconds of start-up

    learned = load_matchers(options.match, warnings, batched)
    return replace(options, match=fallback(options.match, learned)), learned


def _follow(
    ahead: Foresight,
    survey: Survey,
    tracker: Tracker,
    progress: Progress,
    total: int,
    journal: Journal | None,
) -> list[FrameRecord]:
    records = []
    progress.start("following the tube", total)
    try:
        for record, frame in ahead:
            line = None if journal is None else journal.lines.get(record.index)
            if line is not None:
                _replay(record, frame, line, survey, tracker)
            else:
                if frame is not None:
                    view = survey.views[frame.size]
                    record.used = tracker.add(frame, view.geometry, view.shape)
                if journal is not None:
                    kept = frame if record.used else None
                    segment = tracker.segments[-1] if tracker.segments else None
                    journal.write(record.index, record.quality, record.lumen, kept, segment)
            if not record.used and not record.reason:
                record.reason = "not matched"
            records.append(record)
            progress.advance()
    finally:
        progress.stop()
    return records


def _replay(
    record: FrameRecord, frame: TrackedFrame | None, line: Line, survey: Survey, tracker: Tracker
) -> None:
    """A frame that an earlier, interrupted run had done."""
    record.used = line.used
    if line.used and frame is not None:
        view = survey.views[frame.size]
        frame.kept_view = line.view
        tracker.replay(frame, view.geometry, view.shape, line.began, line.pairs)
    elif not record.reason:
        tracker.replay_failure()


def _joined(tracker: Tracker, segments: list[Segment]) -> list[Segment]:
    """Segments re-attached where a later one sees an earlier one's wall.

    Not the last one alone: a burst of bubbles may be a short segment of its own.
    """
    out: list[Segment] = []
    for segment in segments:
        for place in reversed(range(max(0, len(out) - _LOOKED_BACK), len(out))):
            whole = tracker.attach(out[place], segment)
            if whole is not None:
                out[place] = whole
                break
        else:
            out.append(segment)
    return out


def _paint(
    survey: Survey, tracker: Tracker, segments: list[Segment], records: list[FrameRecord], options:
    StitchOptions, progress: Progress, workers: Workers, device: "torch.device | None",
) -> tuple[list[SegmentMap], dict[int, Thumbnail]]:  # fmt: skip
    """Settle each segment, then read the video again and lay the frames down."""
    settled, layouts, lights, where = [], [], [], {}
    for number, segment in enumerate(segments):
        result = settle(segment, tracker, options, workers, device)
        settled.append(result)
        layouts.append(Layout(result.segment.geometry, result.poses, options.unfold.width, options.blend))
        profiles = np.stack([frame.profile for frame in segment.frames])
        lights.append(
            fit_exposure(profiles, segment.geometry, segment.shape) if options.blend.flatten else None
        )
        where.update({frame.index: (number, place) for place, frame in enumerate(segment.frames)})
    for record in records:
        if record.used and record.index not in where:
            record.used, record.reason = False, "not matched"
    # the homographies report; the map needs poses alone, so both are made at the same time
    fitting = [fit_pairs(result.segment, tracker, result.poses, options, workers) for result in settled]
    canvases, thumbnails = _laid(survey, layouts, lights, where, progress, workers, device)
    fits = [list(each) for each in fitting]
    maps = []
    for canvas, result, pairs in zip(canvases, settled, fits, strict=True):
        segment = result.segment
        image, provenance = canvas.finish()
        maps.append(
            SegmentMap(
                image, provenance, [frame.index for frame in segment.frames],
                [frame.seconds for frame in segment.frames], result.poses,
                pairs, segment.geometry, segment.shape, canvas.top, result.rms,
            )
        )  # fmt: skip
    return maps, thumbnails


def _laid(
    survey: Survey, layouts: list[Layout], lights: list[Exposure | None], where: dict[int, tuple[int, int]],
    progress: Progress, workers: Workers, device: "torch.device | None",
) -> tuple[Sequence["Canvas | DeviceCanvas"], dict[int, Thumbnail]]:  # fmt: skip
    """Reads the video again; on a device if the maps fit there."""
    if device is not None:
        from fewer.stitch.device.canvas import DeviceCanvas, fits_on

        if fits_on(device, layouts):
            onboard = [
                DeviceCanvas(layout, light, device) for layout, light in zip(layouts, lights, strict=True)
            ]
            return onboard, lay_down_together(survey, onboard, where, progress, workers, device)
    canvases = [Canvas(layout) for layout in layouts]
    return canvases, lay_down(survey, canvases, lights, where, progress, workers)


def _refusal(records: list[FrameRecord], noticed: list[str]) -> str:
    counts = Counter(record.reason or "usable but alone" for record in records)
    table = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return (
        f"not enough frames: {len(records)} read{', of which ' if table else ''}{table}; at least 2 must "
        "show the same stretch of a tube. Try a smaller stride, another lens, or a video with a visible lumen"
        + (f" ({len(noticed)} notes, the first: {noticed[0]})" if noticed else "")
    )
