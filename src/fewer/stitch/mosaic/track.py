"""Tracking: which frames hang together. Pairs are matched as frames arrive; a segment ends where the chain
breaks.

Matches and the points of keyframes go to a file as soon as they are found, so that memory hardly grows with
the length of the video.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from fewer.stitch.match.features import Features, PairMatcher, StripView
from fewer.stitch.mosaic.find import Found, Side, find_pair
from fewer.stitch.mosaic.segment import Pair, Segment, TrackedFrame
from fewer.stitch.mosaic.store import Store
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import MATCHERS, StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.strip import StripShape

_KEYFRAME_POINTS = 500
_RETRIES = (2, 4, 5, 6)
_LOOP_REACH, _ANCHOR_STEP = 0.5, 0.1  # tube radii


class Tracker:
    """Feeds on frames in order; `segments` is the result. `store` holds what is too much for memory."""

    def __init__(
        self, options: StitchOptions, pair_matchers: Mapping[str, PairMatcher], store: Store | None = None,
        workers: Workers | None = None,
    ) -> None:  # fmt: skip
        self._options, self._pair_matchers = options, pair_matchers
        self._workers = workers or Workers(1)
        self.foreseen: dict[tuple[int, int], Future[Found | None]] = {}
        """Pairs of frame numbers (new, old) that somebody matches already; see `foresight`."""
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
        wanted: list[tuple[int, int]] = []
        anchors: list[int] = []
        for later in [place for place, frame in enumerate(segment.frames) if frame.keyframe]:
            off = np.abs(poses[anchors, 5] - poses[later, 5])
            apart = [place for place in np.argsort(off, kind="stable") if later - anchors[place] >= 10]
            wanted += [(later, anchors[place]) for place in apart[:2] if off[place] <= _LOOP_REACH]
            if not len(off) or off.min() > _ANCHOR_STEP:
                anchors.append(later)
        found = self._match_all(segment, [(segment.frames[i], segment.frames[j]) for i, j in wanted], wanted)
        enough = self._options.track.loop_inliers
        return [replace(pair, loop=True) for pair in found if pair.count >= enough]

    def attach(self, old: Segment, new: Segment) -> Segment | None:
        """Both segments as one, when keyframes of the new one see the wall of the old one; None otherwise."""
        if old.geometry != new.geometry:
            return None
        late = [place for place, frame in enumerate(old.frames) if frame.keyframe][-20:]
        early = [place for place, frame in enumerate(new.frames) if frame.keyframe][:3]
        places = [(first, second) for second in late for first in early]
        frames = [(new.frames[first], old.frames[second]) for first, second in places]
        found = self._match_all(old, frames, places)
        best = max(found, key=lambda pair: pair.count, default=None)
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
        foreseen = self.foreseen.pop((new.index, old.index), None)
        found = self._find(segment, new, old) if foreseen is None else foreseen.result()
        return self._kept(found, places)

    def _match_all(
        self, segment: Segment, frames: Sequence[tuple[TrackedFrame, TrackedFrame]],
        places: Sequence[tuple[int, int]],
    ) -> list[Pair]:  # fmt: skip
        """Many pairs that do not wait for one another; learned matchers look at as many as they like to."""
        together = max([matcher.together for matcher in self._pair_matchers.values()], default=1)
        if together == 1:
            found = self._workers.in_order(lambda both: self._find(segment, *both), frames)
        else:
            groups = (frames[start : start + together] for start in range(0, len(frames), together))
            found = (each for group in groups for each in self._find_together(segment, group))
        pairs = [self._kept(each, place) for each, place in zip(found, places, strict=True)]
        return [pair for pair in pairs if pair is not None]

    def _find_together(
        self, segment: Segment, frames: Sequence[tuple[TrackedFrame, TrackedFrame]]
    ) -> Iterator[Found | None]:
        # each frame once, however many pairs it is in: the networks then look at it once
        views = {frame.index: self._recall(frame) for both in frames for frame in both}
        seen = [both for both in frames if all(views[frame.index] is not None for frame in both)]
        pairs = [(views[new.index], views[old.index]) for new, old in seen]
        said = {name: matcher.propose(pairs) for name, matcher in self._pair_matchers.items()}
        proposals = {
            (new.index, old.index): {name: each[place] for name, each in said.items()}
            for place, (new, old) in enumerate(seen)
        }
        return self._workers.in_order(
            lambda both: self._find(segment, *both, views, proposals.get((both[0].index, both[1].index))),
            frames,
        )

    def _find(
        self, segment: Segment, new: TrackedFrame, old: TrackedFrame,
        views: Mapping[int, StripView | None] | None = None, proposed: Mapping[str, object] | None = None,
    ) -> Found | None:  # fmt: skip
        mine, its = (self._recall(frame) if views is None else views[frame.index] for frame in (new, old))
        if mine is None or its is None:
            return None
        sides = (Side(new.index, new.pose, mine), Side(old.index, old.pose, its))
        return find_pair(
            *sides, segment.geometry, segment.shape, self._options, self._pair_matchers, proposed
        )

    def _kept(self, found: Found | None, places: tuple[int, int]) -> Pair | None:
        if found is None:
            return None
        matches, edge = self.store.keep(found.table), self.store.keep(found.edge.table, found.edge.weight)
        return Pair(*places, matches, len(found.table), found.shift, found.counts, edge=edge)

    def _mark_keyframe(self, segment: Segment) -> None:
        last = next(place for place in reversed(range(len(segment.frames))) if segment.frames[place].keyframe)
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
