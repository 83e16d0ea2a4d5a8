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

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from fewer.core.errors import DataError
from fewer.core.progress import Progress, SilentProgress
from fewer.stitch.frames.quality import highlight_mask
from fewer.stitch.frames.source import Frame, FrameSource, open_frames
from fewer.stitch.homography.dwho import PairFit, PairMatches, fit_all
from fewer.stitch.match.pool import displacement
from fewer.stitch.mosaic.canvas import Canvas, Laid, Provenance
from fewer.stitch.mosaic.exposure import Exposure, fit_exposure
from fewer.stitch.mosaic.settle import settle
from fewer.stitch.mosaic.survey import FrameRecord, Survey
from fewer.stitch.mosaic.track import Pair, PairMatcher, Segment, Tracker
from fewer.stitch.options import StitchOptions
from fewer.stitch.output.thumbnail import MOST, Thumbnail, make_thumbnail
from fewer.stitch.report import make_report
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lumen import DepthProvider
from fewer.stitch.unfold.strip import StripShape

_AHEAD = 3


@dataclass(frozen=True, slots=True)
class PairResult:
    """Density-weighted homography between two frames' strips (numbers are those of the video), and its
    matches.
    """

    new: int
    old: int
    fit: PairFit
    p: Float[np.ndarray, "matches 2"]
    q: Float[np.ndarray, "matches 2"]
    counts: dict[str, int]
    loop: bool


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
) -> Panorama:
    """Map of the tube's wall from an endoscopy video, a folder of frames, a DICOM file, or arrays (BGR).

    `depth` replaces the built-in lumen finder: picture -> relative depth, larger = deeper.
    Raises FileError for sources that cannot be read and DataError when fewer than two frames can be joined.
    """
    options = options or StitchOptions()
    progress = progress or SilentProgress()
    source = open_frames(frames)
    warnings: list[str] = []
    options, learned = _with_matchers(options, warnings)
    tracker = Tracker(options, learned)
    survey = Survey(source, options, depth)
    records = _follow(survey, tracker, progress, source.length // options.select.stride)
    segments = _joined(tracker, [segment for segment in tracker.segments if len(segment.frames) > 1])
    if not segments:
        raise DataError(_refusal(records))
    maps, thumbnails = _paint(survey, tracker, segments, records, options, progress)
    longest = max(maps, key=lambda piece: len(piece.frames))
    report = make_report(maps, records, options, [*source.warnings, *warnings])
    return Panorama(longest.image, longest.provenance, maps, report, thumbnails)


def _with_matchers(
    options: StitchOptions, warnings: list[str]
) -> tuple[StitchOptions, dict[str, PairMatcher]]:
    """The learned matchers asked for, and the options without those that are missing."""
    if set(options.match.matchers) <= {"sift", "orb"}:
        return options, {}
    from fewer.stitch.match.learned import fallback, load_matchers  # torch: seconds of start-up

    learned = load_matchers(options.match, warnings)
    return replace(options, match=fallback(options.match, learned)), learned


def fit_pairs(
    pairs: Sequence[Pair], segment: Segment, poses: Float[np.ndarray, "frames 6"], options: StitchOptions
) -> list[PairResult]:
    """DWHO of every pair in the strips that the poses unwrap: only coordinates move, no picture is
    unwrapped again.
    """
    brought = []
    for pair in pairs:
        p, q, shift = strip_matches(pair, segment, poses)
        confidence = pair.confidence
        if options.homography.resolution_weight:
            confidence = confidence * _resolution_share(segment.geometry, segment.shape, p)
        seed = (options.seed, segment.frames[pair.first].index, segment.frames[pair.second].index)
        brought.append(PairMatches(p, q, confidence, shift, seed, held_out=pair.first - pair.second == 1))
    fits = fit_all(brought, (segment.shape.width, segment.shape.height), options.homography)
    return [
        PairResult(*mine.seed[1:], fit, mine.p, mine.q, pair.counts, pair.loop)
        for pair, mine, fit in zip(pairs, brought, fits, strict=True)
    ]


def strip_matches(
    pair: Pair, segment: Segment, poses: Float[np.ndarray, "frames 6"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair's matches in strip pixels through the poses, and the displacement between the two frames."""
    sides = []
    for place, xy in ((pair.first, pair.xy_first), (pair.second, pair.xy_second)):
        sides.append(segment.shape.to_pixels(segment.geometry.to_wall(xy, poses[place, :4])))
    shift = (poses[pair.first, 4:] - poses[pair.second, 4:]) * segment.shape.scale
    off = displacement(sides[0] + shift, sides[1], segment.shape.width)
    return sides[0], sides[1], shift + np.median(off, axis=0)


def _resolution_share(geometry: Geometry, shape: StripShape, p: np.ndarray) -> np.ndarray:
    """How finely the camera saw a match, relative to the best: its position noise goes with one over this."""
    _, along = geometry.resolution(shape.to_wall(p)[:, 1])
    return np.clip(along / along.max(), 0.05, 1) if len(along) else along


def _follow(survey: Survey, tracker: Tracker, progress: Progress, total: int) -> list[FrameRecord]:
    records = []
    progress.start("following the tube", total)
    try:
        for record, frame in survey:
            if frame is not None:
                view = survey.views[frame.size]
                record.used = tracker.add(frame, view.geometry, view.shape)
                if not record.used:
                    record.reason = "not matched"
            records.append(record)
            progress.advance()
    finally:
        progress.stop()
    return records


def _joined(tracker: Tracker, segments: list[Segment]) -> list[Segment]:
    """Segments re-attached where a later one sees an earlier one's wall."""
    out: list[Segment] = []
    for segment in segments:
        whole = tracker.attach(out[-1], segment) if out else None
        if whole is None:
            out.append(segment)
        else:
            out[-1] = whole
    return out


def _paint(
    survey: Survey, tracker: Tracker, segments: list[Segment], records: list[FrameRecord], options:
    StitchOptions, progress: Progress,
) -> tuple[list[SegmentMap], dict[int, Thumbnail]]:  # fmt: skip
    """Settle each segment, then read the video again and lay the frames down."""
    settled, canvases, lights, where = [], [], [], {}
    for number, segment in enumerate(segments):
        result = settle(segment, tracker, options)
        settled.append(result)
        canvases.append(Canvas(result.segment.geometry, result.poses, options.unfold.width, options.blend))
        profiles = np.stack([frame.profile for frame in segment.frames])
        lights.append(
            fit_exposure(profiles, segment.geometry, segment.shape) if options.blend.flatten else None
        )
        where.update({frame.index: (number, place) for place, frame in enumerate(segment.frames)})
    for record in records:
        if record.used and record.index not in where:
            record.used, record.reason = False, "not matched"
    thumbnails = _lay_down(survey, canvases, lights, where, progress)
    maps = []
    for canvas, result in zip(canvases, settled, strict=True):
        segment = result.segment
        image, provenance = canvas.finish()
        maps.append(
            SegmentMap(
                image, provenance, [frame.index for frame in segment.frames],
                [frame.seconds for frame in segment.frames], result.poses,
                fit_pairs(segment.pairs, segment, result.poses, options), segment.geometry, segment.shape,
                canvas.top, result.rms,
            )
        )  # fmt: skip
    return maps, thumbnails


def _lay_down(
    survey: Survey, canvases: list[Canvas], lights: list[Exposure | None], where: dict[int, tuple[int, int]],
    progress: Progress,
) -> dict[int, Thumbnail]:  # fmt: skip
    """The second pass: two threads prepare strips, this one adds them in the order of the video."""
    shown = set(list(where)[:: -(-len(where) // MOST)])
    thumbnails: dict[int, Thumbnail] = {}

    def prepare(frame: Frame) -> tuple[int, Laid]:
        number, place = where[frame.index]
        field = survey.view_of(frame.picture).field
        clear = field.usable & ~highlight_mask(frame.picture)
        if frame.index in shown:
            thumbnails[frame.index] = make_thumbnail(frame.picture, field)
        return number, canvases[number].prepare(place, frame.index, frame.picture, clear, lights[number])

    def add(task: Future[tuple[int, Laid]]) -> None:
        number, laid = task.result()
        canvases[number].add(laid)
        progress.advance()

    progress.start("painting the map", len(where))
    waiting: deque[Future[tuple[int, Laid]]] = deque()
    with ThreadPoolExecutor(max_workers=2) as workers:
        for frame in survey.picked():
            if frame.index in where:
                waiting.append(workers.submit(prepare, frame))
            while len(waiting) > _AHEAD:
                add(waiting.popleft())
        while waiting:
            add(waiting.popleft())
    progress.stop()
    return dict(sorted(thumbnails.items()))


def _refusal(records: list[FrameRecord]) -> str:
    counts = Counter(record.reason or "usable but alone" for record in records)
    table = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return (
        f"not enough frames: {len(records)} read, of which {table or 'none'}; at least 2 must show the same "
        "stretch of a tube. Try a smaller stride, another lens, or a video with a visible lumen"
    )
