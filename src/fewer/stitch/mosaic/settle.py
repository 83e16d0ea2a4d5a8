"""Settling a segment: all poses at once, the lens if asked, loops, and what rolls and depths come out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fewer.stitch.mosaic.find import balanced
from fewer.stitch.mosaic.segment import Pair, Segment
from fewer.stitch.mosaic.store import Kept, Store
from fewer.stitch.mosaic.track import Tracker
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import StitchOptions
from fewer.stitch.unfold.adjust import Adjustment, Edge, Parts, adjust
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens

if TYPE_CHECKING:
    import torch

_CALIBRATION_FRAMES = 30


@dataclass(frozen=True, slots=True)
class Settled:
    """A segment with its final poses (a, b, pan, tilt, roll, axial) and the RMS residual in picture
    pixels.
    """

    segment: Segment
    poses: Float[np.ndarray, "frames 6"]
    rms: float


def settle(
    segment: Segment, tracker: Tracker, options: StitchOptions, workers: Workers | None = None,
    onboard: "torch.device | None" = None,
) -> Settled:  # fmt: skip
    """Adjusts, looks for loops, adjusts again. Adds the loop pairs to the segment. The equations are made on
    the device `onboard`, if there is one.
    """
    crew = workers or Workers(1)
    poses = segment.first_poses()
    edges, tracked = edges_of(segment, tracker, options, crew), segment.geometry
    fixed = np.zeros(poses.shape, bool)
    lumen = lumen_of(segment) if options.unfold.pose else None
    if segment.geometry.mode != "cylinder" or not options.unfold.pose:
        fixed[:, :4] = True
    if options.unfold.calibrate and segment.geometry.mode == "cylinder":
        segment.geometry = calibrated(segment, poses, edges, fixed, lumen)

    def adjusted(start: np.ndarray, pairs: list[KeptEdge]) -> Adjustment:
        return adjust(
            segment.geometry, start, pairs, fixed=fixed, lumen=lumen, iterations=options.track.iterations,
            spread=crew.in_order, parts=_parts(segment.geometry, pairs, onboard),
        )  # fmt: skip

    result = adjusted(poses, edges)
    if options.track.loops:
        loops = tracker.close_loops(segment, result.poses)
        if loops:
            segment.pairs.extend(loops)
            same = segment.geometry == tracked
            result = adjusted(result.poses, edges_of(segment, tracker, options, crew, same))
    return Settled(segment, result.poses, result.rms)


def _parts(geometry: Geometry, edges: Sequence[Edge], onboard: "torch.device | None") -> Parts | None:
    if onboard is None:
        return None
    from fewer.stitch.device.adjust import parts_on  # torch: seconds of start-up

    return parts_on(onboard, geometry, edges)


def lumen_of(segment: Segment) -> Float[np.ndarray, "frames 2"] | None:
    """Where each frame's first pose, which came from the lumen, puts the middle of the tube."""
    if segment.geometry.mode != "cylinder":
        return None
    return segment.geometry.axis_in_picture(np.array([frame.pose for frame in segment.frames]))


@dataclass(frozen=True, slots=True)
class KeptEdge:
    """An edge whose matches are read from the store each time they are needed."""

    first: int
    second: int
    weight: Float[np.ndarray, "matches"]
    matches: Kept
    store: Store

    @property
    def xy_first(self) -> Float[np.ndarray, "matches 2"]:
        return self.store.load(self.matches)[0][:, :2]

    @property
    def xy_second(self) -> Float[np.ndarray, "matches 2"]:
        return self.store.load(self.matches)[0][:, 2:]


def edges_of(
    segment: Segment, tracker: Tracker, options: StitchOptions, workers: Workers | None = None,
    tracked: bool = True,
) -> list[KeptEdge]:  # fmt: skip
    """Pairs as edges. They are known since the pairs were found, if the segment's geometry is still the one
    it was `tracked` with.
    """
    crew = workers or Workers(1)
    if tracked and all(pair.edge is not None for pair in segment.pairs):
        return [_edge(pair, segment, tracker, options, tracked) for pair in segment.pairs]
    return list(crew.in_order(lambda pair: _edge(pair, segment, tracker, options, tracked), segment.pairs))


def calibrated(
    segment: Segment, poses: np.ndarray, edges: Sequence[Edge], fixed: np.ndarray, lumen: np.ndarray | None
) -> Geometry:
    """Focal length that leaves the least residual over the first thirty frames: golden section over 0.7 ..
    1.4.
    """
    count = min(len(poses), _CALIBRATION_FRAMES)
    few = [edge for edge in edges if edge.first < count and edge.second < count]
    start = segment.geometry
    seen = None if lumen is None else lumen[:count]

    def trial(factor: float) -> tuple[float, Geometry]:
        lens = Lens(start.lens.model, start.lens.focal * factor, start.lens.coefficients)
        geometry = replace(start, lens=lens)
        result: Adjustment = adjust(
            geometry, poses[:count], few, fixed=fixed[:count], lumen=seen, iterations=6
        )
        return result.rms, geometry

    low, high, ratio = np.log(0.7), np.log(1.4), (np.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = trial(np.exp(left)), trial(np.exp(right))
    for _ in range(9):
        if at_left[0] < at_right[0]:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = trial(np.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = trial(np.exp(right))
    return min(at_left, at_right, key=lambda pair: pair[0])[1]


def _edge(pair: Pair, segment: Segment, tracker: Tracker, options: StitchOptions, tracked: bool) -> KeptEdge:
    store, kept = tracker.store, pair.edge
    if kept is None or not tracked:  # read from a journal, or seen through another lens since
        poses = (segment.frames[place].pose for place in (pair.first, pair.second))
        edge = balanced(store.load(pair.matches)[0], *poses, segment.geometry, segment.shape, options)
        return KeptEdge(pair.first, pair.second, edge.weight, store.keep(edge.table), store)
    return KeptEdge(pair.first, pair.second, store.load(kept)[1], kept, store)
