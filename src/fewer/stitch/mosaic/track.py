"""Tracking: which frames hang together. Pairs are matched as frames arrive; a segment ends where the chain
breaks.

Matches and the points of keyframes go to a file as soon as they are found, so that memory hardly grows with
the length of the video.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from fewer.stitch.homography.project import symmetric_error
from fewer.stitch.homography.sample import weighted_msac
from fewer.stitch.match.features import Features, Guide, StripView, match_features
from fewer.stitch.match.pool import Matches, Pool, displacement, fill_pool, motion_reach, winning_shift
from fewer.stitch.mosaic.store import Kept, Store
from fewer.stitch.options import MATCHERS, StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.strip import StripShape

PairMatcher = Callable[[StripView, StripView], Matches]
_KEYFRAME_POINTS = 500
_GUIDES = 12
_RETRIES = (2, 4, 5, 6)
_LOOP_REACH, _ANCHOR_STEP = 0.5, 0.1  # tube radii
_VERIFY_PIXELS = 10.0  # before the pose is known a homography leaves several pixels


@dataclass(frozen=True, slots=True)
class Pair:
    """Two used frames and where their matches are kept; `first` is the newer one. Indices are places in the
    segment.
    """

    first: int
    second: int
    matches: Kept
    count: int
    shift: Float[np.ndarray, "2"]
    counts: dict[str, int]
    loop: bool = False


@dataclass(slots=True)
class TrackedFrame:
    """A used frame: its number, time and (height, width), its first pose, its view while it is still needed,
    and where that of a keyframe is kept.
    """

    index: int
    seconds: float
    size: tuple[int, int]
    pose: Float[np.ndarray, "4"]
    profile: Float[np.ndarray, "samples 3"]
    view: StripView | None
    keyframe: bool = False
    kept_view: Kept | None = None


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
    """Feeds on frames in order; `segments` is the result. `store` holds what is too much for memory."""

    def __init__(
        self, options: StitchOptions, pair_matchers: dict[str, PairMatcher], store: Store | None = None
    ) -> None:
        self._options, self._pair_matchers = options, pair_matchers
        self.store = Store() if store is None else store
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
            pairs = self._pairs(segment, frame, place, _RETRIES)
        if not pairs:
            self._failed += 1
            if self._failed >= self._options.track.lost_after or gap > 0.5:
                self._begin(frame, geometry, shape)
                return True
            return False
        self._append(segment, frame, pairs)
        return True

    def replay(
        self, frame: TrackedFrame, geometry: Geometry, shape: StripShape, began: bool, pairs: list[Pair]
    ) -> None:
        """What `add` did with a used frame when this video was read before: nothing is matched again."""
        if began:
            self._begin(frame, geometry, shape)
        else:
            self._append(self.segments[-1], frame, pairs)

    def replay_failure(self) -> None:
        """A frame that `add` could not match when this video was read before."""
        self._failed += 1

    def points(self, pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A pair's matches: places in the first and second picture (pixels) and confidence."""
        table = self.store.load(pair.matches)[0].astype(np.float64)
        return table[:, :2], table[:, 2:4], table[:, 4]

    def close_loops(self, segment: Segment, poses: Float[np.ndarray, "frames 6"]) -> list[Pair]:
        """Pairs of keyframes that see the same wall at different times, verified with `loop_inliers`.

        Later keyframes are tied to anchors alone, the first keyframe at each tenth of a radius: however often
        a tube is gone through, the adjustment's equations stay sparse.
        """
        found: list[Pair] = []
        anchors: list[int] = []
        for later in [place for place, frame in enumerate(segment.frames) if frame.keyframe]:
            off = np.abs(poses[anchors, 5] - poses[later, 5])
            apart = [place for place in np.argsort(off, kind="stable") if later - anchors[place] >= 10]
            for place in [place for place in apart[:2] if off[place] <= _LOOP_REACH]:
                earlier = anchors[place]
                pair = self._match(segment, segment.frames[later], segment.frames[earlier], (later, earlier))
                if pair is not None and pair.count >= self._options.track.loop_inliers:
                    found.append(replace(pair, loop=True))
            if not len(off) or off.min() > _ANCHOR_STEP:
                anchors.append(later)
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
                if pair is not None and (best is None or pair.count > best.count):
                    best = pair
        if best is None or best.count < self._options.track.loop_inliers:
            return None
        offset = len(old.frames)
        shift = old.chain[best.second] + best.shift / old.shape.scale - new.chain[best.first]
        moved = [replace(pair, first=pair.first + offset, second=pair.second + offset) for pair in new.pairs]
        join = replace(best, first=best.first + offset)
        return Segment(
            old.geometry, old.shape, old.frames + new.frames, [*old.pairs, *moved, join],
            old.chain + [place + shift for place in new.chain],
        )  # fmt: skip

    def _begin(self, frame: TrackedFrame, geometry: Geometry, shape: StripShape) -> None:
        self._keep_view(frame)
        self.segments.append(Segment(geometry, shape, [frame], [], [np.zeros(2)]))
        self._failed, self._last_seconds = 0, frame.seconds

    def _append(self, segment: Segment, frame: TrackedFrame, pairs: list[Pair]) -> None:
        nearest = min(pairs, key=lambda pair: pair.first - pair.second)
        step = np.array([nearest.shift[0], nearest.shift[1]]) / segment.shape.scale
        segment.frames.append(frame)
        segment.pairs.extend(pairs)
        segment.chain.append(segment.chain[nearest.second] + step)
        self._failed, self._last_seconds = 0, frame.seconds
        self._mark_keyframe(segment)
        forgotten = len(segment.frames) - 1 - views_needed(self._options)
        if forgotten >= 0:
            segment.frames[forgotten].view = None

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
        views = [self._recall(frame) for frame in (new, old)]
        if views[0] is None or views[1] is None:
            return None
        options, shape = self._options, segment.shape
        pool = pool_of(views[0], views[1], shape, options, self._pair_matchers)
        matches = pool.matches
        if not verified(pool, shape, options, (options.seed, new.index, old.index)):
            return None
        xy_new = segment.geometry.to_picture(shape.to_wall(matches.p), new.pose)
        xy_old = segment.geometry.to_picture(shape.to_wall(matches.q), old.pose)
        table = np.column_stack([xy_new, xy_old, matches.confidence]).astype(np.float32)
        return Pair(*places, self.store.keep(table), len(table), pool.shift, pool.counts)

    def _mark_keyframe(self, segment: Segment) -> None:
        last = max(place for place, frame in enumerate(segment.frames) if frame.keyframe)
        turn, move = np.abs(segment.chain[-1] - segment.chain[last])
        height = segment.shape.height / segment.shape.scale
        track = self._options.track
        if move >= track.keyframe_shift * height or turn >= np.radians(track.keyframe_roll_degrees):
            self._keep_view(segment.frames[-1])

    def _keep_view(self, frame: TrackedFrame) -> None:
        """Makes it a keyframe: its strongest points go to the store, its strip too if a matcher needs it."""
        frame.keyframe = True
        if frame.view is None or frame.kept_view is not None:
            return
        names = list(frame.view.features)
        arrays = [np.array([MATCHERS.index(name) for name in names], np.int8)]
        for points in frame.view.features.values():
            few = points.strongest(_KEYFRAME_POINTS)
            arrays += [
                few.xy,
                few.descriptors.astype(np.float16 if few.descriptors.dtype == np.float32 else np.uint8),
            ]
        if self._pair_matchers:
            arrays += [frame.view.grey, frame.view.mask]
        frame.kept_view = self.store.keep(*arrays)

    def _recall(self, frame: TrackedFrame) -> StripView | None:
        """A frame's view, from the store if it is a keyframe's and no longer in memory."""
        if frame.view is not None or frame.kept_view is None:
            return frame.view
        codes, *arrays = self.store.load(frame.kept_view)
        grey, mask = np.zeros((0, 0), np.uint8), np.zeros((0, 0), bool)
        if self._pair_matchers:
            *arrays, grey, mask = arrays
        found = {
            MATCHERS[code]: Features(arrays[2 * place], arrays[2 * place + 1])
            for place, code in enumerate(codes)
        }
        return StripView(grey, mask, found)


def views_needed(options: StitchOptions) -> int:
    """How many used frames back a frame may be matched."""
    return max(*_RETRIES, *options.match.offsets)


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
