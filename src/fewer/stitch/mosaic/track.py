"""Tracking: which frames hang together. Pairs are matched as frames arrive; a segment ends where the chain
breaks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from fewer.stitch.homography.project import symmetric_error
from fewer.stitch.homography.sample import weighted_msac
from fewer.stitch.match.features import Features, Guide, StripView, match_features
from fewer.stitch.match.pool import Matches, Pool, displacement, fill_pool, motion_reach, winning_shift
from fewer.stitch.options import StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.strip import StripShape

PairMatcher = Callable[[StripView, StripView], Matches]
_KEYFRAME_POINTS = 500
_GUIDES = 12
_VERIFY_PIXELS = 10.0  # before the pose is known a homography leaves several pixels


@dataclass(frozen=True, slots=True)
class Pair:
    """Matches of two used frames in picture pixels; `first` is the newer one. Indices are places in the
    segment.
    """

    first: int
    second: int
    xy_first: Float[np.ndarray, "matches 2"]
    xy_second: Float[np.ndarray, "matches 2"]
    confidence: Float[np.ndarray, "matches"]
    shift: Float[np.ndarray, "2"]
    counts: dict[str, int]
    loop: bool = False


@dataclass(slots=True)
class TrackedFrame:
    """A used frame: its number, time and (height, width), its first pose, and its view while it is still
    needed.
    """

    index: int
    seconds: float
    size: tuple[int, int]
    pose: Float[np.ndarray, "4"]
    profile: Float[np.ndarray, "samples 3"]
    view: StripView | None
    keyframe: bool = False


@dataclass(slots=True)
class Segment:
    """Frames that hang together, with one geometry and the chain's roll and axial place of each."""

    geometry: Geometry
    shape: StripShape
    frames: list[TrackedFrame] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    chain: list[np.ndarray] = field(default_factory=list)

    def first_poses(self) -> Float[np.ndarray, "frames 6"]:
        """Where the chain of pair displacements puts each frame: (a, b, pan, tilt, roll, axial)."""
        return np.array(
            [
                np.concatenate([frame.pose, place])
                for frame, place in zip(self.frames, self.chain, strict=True)
            ]
        )


class Tracker:
    """Feeds on frames in order; `segments` is the result."""

    def __init__(self, options: StitchOptions, pair_matchers: dict[str, PairMatcher]) -> None:
        self._options, self._pair_matchers = options, pair_matchers
        self.segments: list[Segment] = []
        self._failed = 0
        self._last_seconds = 0.0

    def add(self, frame: TrackedFrame, geometry: Geometry, shape: StripShape) -> bool:
        """True when the frame was used; False when it could not be matched (and did not begin a segment)."""
        segment = self.segments[-1] if self.segments else None
        gap = frame.seconds - self._last_seconds
        if segment is None or segment.geometry != geometry:
            self._begin(frame, geometry, shape)
            return True
        place = len(segment.frames)
        pairs = self._pairs(segment, frame, place, self._options.match.offsets)
        if not pairs:
            pairs = self._pairs(segment, frame, place, (2, 4, 5, 6))
        if not pairs:
            self._failed += 1
            if self._failed >= self._options.track.lost_after or gap > 0.5:
                self._begin(frame, geometry, shape)
                return True
            return False
        nearest = min(pairs, key=lambda pair: pair.first - pair.second)
        step = np.array([nearest.shift[0], nearest.shift[1]]) / shape.scale
        segment.frames.append(frame)
        segment.pairs.extend(pairs)
        segment.chain.append(segment.chain[nearest.second] + step)
        self._failed, self._last_seconds = 0, frame.seconds
        self._mark_keyframe(segment)
        self._forget(segment)
        return True

    def close_loops(self, segment: Segment, poses: Float[np.ndarray, "frames 6"]) -> list[Pair]:
        """Pairs of keyframes that see the same wall at different times, verified with `loop_inliers`."""
        keys = [place for place, frame in enumerate(segment.frames) if frame.keyframe]
        found: list[Pair] = []
        for later in keys:
            apart = [key for key in keys if later - key >= 10]
            apart.sort(key=lambda key: abs(poses[key, 5] - poses[later, 5]))
            for earlier in apart[:2]:
                if abs(poses[earlier, 5] - poses[later, 5]) > 0.5:
                    break
                pair = self._match(segment, segment.frames[later], segment.frames[earlier], (later, earlier))
                if pair is not None and len(pair.confidence) >= self._options.track.loop_inliers:
                    found.append(Pair(**{**_fields(pair), "loop": True}))
        return found

    def attach(self, old: Segment, new: Segment) -> Segment | None:
        """Both segments as one, when keyframes of the new one see the wall of the old one; None otherwise."""
        if old.geometry != new.geometry:
            return None
        late = [place for place, frame in enumerate(old.frames) if frame.keyframe][-20:]
        early = [place for place, frame in enumerate(new.frames) if frame.keyframe][:3]
        best: Pair | None = None
        for second in late:
            for first in early:
                pair = self._match(old, new.frames[first], old.frames[second], (first, second))
                if pair is not None and (best is None or len(pair.confidence) > len(best.confidence)):
                    best = pair
        if best is None or len(best.confidence) < self._options.track.loop_inliers:
            return None
        offset = len(old.frames)
        shift = old.chain[best.second] + best.shift / old.shape.scale - new.chain[best.first]
        moved = [
            Pair(**{**_fields(pair), "first": pair.first + offset, "second": pair.second + offset})
            for pair in new.pairs
        ]
        join = Pair(**{**_fields(best), "first": best.first + offset})
        return Segment(
            old.geometry, old.shape, old.frames + new.frames, [*old.pairs, *moved, join],
            old.chain + [place + shift for place in new.chain],
        )  # fmt: skip

    def _begin(self, frame: TrackedFrame, geometry: Geometry, shape: StripShape) -> None:
        frame.keyframe = True
        self.segments.append(Segment(geometry, shape, [frame], [], [np.zeros(2)]))
        self._failed, self._last_seconds = 0, frame.seconds

    def _pairs(
        self, segment: Segment, frame: TrackedFrame, place: int, offsets: tuple[int, ...]
    ) -> list[Pair]:
        found = []
        for offset in offsets:
            if offset > place or segment.frames[place - offset].view is None:
                continue
            pair = self._match(segment, frame, segment.frames[place - offset], (place, place - offset))
            if pair is not None:
                found.append(pair)
        return found

    def _match(
        self, segment: Segment, new: TrackedFrame, old: TrackedFrame, places: tuple[int, int]
    ) -> Pair | None:
        """Match, filter and verify one pair; None when too little is left."""
        if new.view is None or old.view is None:
            return None
        options, shape = self._options, segment.shape
        pool = pool_of(new.view, old.view, shape, options, self._pair_matchers)
        matches = pool.matches
        if not verified(pool, shape, options, (options.seed, new.index, old.index)):
            return None
        xy_new = segment.geometry.to_picture(shape.to_wall(matches.p), new.pose)
        xy_old = segment.geometry.to_picture(shape.to_wall(matches.q), old.pose)
        return Pair(*places, xy_new, xy_old, matches.confidence, pool.shift, pool.counts)

    def _mark_keyframe(self, segment: Segment) -> None:
        last = max(place for place, frame in enumerate(segment.frames) if frame.keyframe)
        turn, move = np.abs(segment.chain[-1] - segment.chain[last])
        height = segment.shape.height / segment.shape.scale
        track = self._options.track
        if move >= track.keyframe_shift * height or turn >= np.radians(track.keyframe_roll_degrees):
            segment.frames[-1].keyframe = True

    def _forget(self, segment: Segment) -> None:
        """Views further back than pairs reach are dropped; keyframes keep their strongest points."""
        place = len(segment.frames) - 1 - max(6, *self._options.match.offsets)
        if place < 0:
            return
        frame = segment.frames[place]
        if frame.view is None:
            return
        if not frame.keyframe:
            frame.view = None
            return
        few = {name: _small(points) for name, points in frame.view.features.items()}
        learned = bool(self._pair_matchers)
        empty = np.zeros((0, 0))
        frame.view = StripView(
            frame.view.grey if learned else empty.astype(np.uint8),
            frame.view.mask if learned else empty.astype(bool),
            few,
        )


def pool_of(
    new: StripView, old: StripView, shape: StripShape, options: StitchOptions, learned: dict[str, PairMatcher]
) -> Pool:
    """All matchers' matches of two strips, filtered. SIFT votes first and shows ORB where to look."""
    groups: list[Matches] = []
    guide: Guide | None = None
    for name in [name for name in ("sift", "orb") if name in new.features and name in old.features]:
        groups.append(
            match_features(name, new.features[name], old.features[name], options.match.ratio, guide)
        )
        guide = guide_of(groups[-1], shape)
    groups += [matcher(new, old) for matcher in learned.values()]
    return fill_pool(groups, (shape.height, shape.width), options.match)


def guide_of(matches: Matches, shape: StripShape) -> Guide | None:
    """The displacement most matches agree on, if a dozen do."""
    if len(matches) < _GUIDES:
        return None
    shift, reach = winning_shift(matches, shape.width), motion_reach(shape.height)
    off = np.abs(displacement(matches.p + shift, matches.q, shape.width))
    if int((off <= reach).all(axis=1).sum()) < _GUIDES:
        return None
    return Guide(shift, 1.5 * reach, shape.width)


def verified(pool: Pool, shape: StripShape, options: StitchOptions, seed: tuple[int, ...]) -> bool:
    """Enough matches agree, loosely, on one homography, all round the tube."""
    matches, wanted = pool.matches, options.homography
    if len(matches) < max(wanted.min_matches, wanted.min_inliers):
        return False
    q = matches.p + pool.shift + displacement(matches.p + pool.shift, matches.q, shape.width)
    start = weighted_msac(matches.p, q, matches.confidence, wanted, np.random.default_rng(list(seed)))
    if start is None:
        return False
    inlier = symmetric_error(start, matches.p, q) < _VERIFY_PIXELS
    sectors = np.unique((matches.p[inlier, 0] * 16 / shape.width).astype(int))
    enough = inlier.sum() >= max(wanted.min_inliers, wanted.min_inlier_share * len(matches))
    return bool(enough and len(sectors) >= wanted.min_sectors)


def _small(points: Features) -> Features:
    kept = points.strongest(_KEYFRAME_POINTS)
    half = (
        kept.descriptors.astype(np.float16)
        if kept.descriptors.dtype == np.float32
        else kept.descriptors.copy()
    )
    return Features(kept.xy.copy(), half)


def _fields(pair: Pair) -> dict:
    return {name: getattr(pair, name) for name in Pair.__slots__}
