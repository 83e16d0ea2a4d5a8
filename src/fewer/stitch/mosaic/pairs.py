"""The homography of each pair, in strips unwrapped through the settled poses."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from fewer.stitch.homography.dwho import PairFit, PairMatches, fit_all
from fewer.stitch.match.pool import displacement
from fewer.stitch.mosaic.segment import Pair, Segment
from fewer.stitch.mosaic.store import Kept, Store
from fewer.stitch.mosaic.track import Tracker
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.strip import StripShape

_PAIRS_AT_ONCE = 16  # as many as are refined side by side


@dataclass(frozen=True, slots=True)
class PairResult:
    """Density-weighted homography between two frames' strips (numbers are those of the video), and its
    matches `p` (new) and `q` (old) in strip pixels, which lie on disk.
    """

    new: int
    old: int
    fit: PairFit
    matches: Kept
    store: Store
    counts: dict[str, int]
    loop: bool

    @property
    def p(self) -> Float[np.ndarray, "matches 2"]:
        return self.store.load(self.matches)[0].astype(np.float64)

    @property
    def q(self) -> Float[np.ndarray, "matches 2"]:
        return self.store.load(self.matches)[1].astype(np.float64)


def fit_pairs(
    segment: Segment, tracker: Tracker, poses: Float[np.ndarray, "frames 6"], options: StitchOptions,
    workers: Workers | None = None,
) -> Iterator[PairResult]:  # fmt: skip
    """DWHO of every pair in the strips that the poses unwrap: only coordinates move, no picture is
    unwrapped again. Work begins at once; the iterator waits for it.
    """
    crew = workers or Workers(1)
    tasks: list[Future[list[PairResult]]] = []
    for start in range(0, len(segment.pairs), _PAIRS_AT_ONCE):
        pairs = segment.pairs[start : start + _PAIRS_AT_ONCE]
        tasks.append(crew.submit(_fit_some, pairs, segment, tracker, poses, options, crew))
    return (result for task in tasks for result in task.result())


def _fit_some(
    pairs: list[Pair], segment: Segment, tracker: Tracker, poses: np.ndarray, options: StitchOptions,
    crew: Workers,
) -> list[PairResult]:  # fmt: skip
    size, out = (segment.shape.width, segment.shape.height), []
    brought = [strip_matches(pair, segment, tracker, poses, options) for pair in pairs]
    fits = crew.apart(fit_all, brought, size, options.homography)
    for pair, mine, fit in zip(pairs, brought, fits, strict=True):
        kept = tracker.store.keep(mine.p.astype(np.float32), mine.q.astype(np.float32))
        slim = replace(fit, weight=fit.weight.astype(np.float32))
        out.append(PairResult(*mine.seed[1:], slim, kept, tracker.store, pair.counts, pair.loop))
    return out


def strip_matches(
    pair: Pair,
    segment: Segment,
    tracker: Tracker,
    poses: Float[np.ndarray, "frames 6"],
    options: StitchOptions,
) -> PairMatches:
    """A pair's matches in strip pixels through the poses, and the displacement between the two frames."""
    sides, shape = [], segment.shape
    xy_first, xy_second, confidence = tracker.points(pair)
    for place, xy in ((pair.first, xy_first), (pair.second, xy_second)):
        sides.append(shape.to_pixels(segment.geometry.to_wall(xy, poses[place, :4])))
    shift = (poses[pair.first, 4:] - poses[pair.second, 4:]) * shape.scale
    off = displacement(sides[0] + shift, sides[1], shape.width)
    if options.homography.resolution_weight:
        confidence = confidence * resolution_share(segment.geometry, shape, sides[0])
    seed = (options.seed, segment.frames[pair.first].index, segment.frames[pair.second].index)
    neighbours = pair.first - pair.second == 1
    return PairMatches(*sides, confidence, shift + np.median(off, axis=0), seed, held_out=neighbours)


def resolution_share(geometry: Geometry, shape: StripShape, p: np.ndarray) -> np.ndarray:
    """How finely the camera saw a match, relative to the best: its position noise goes with one over this."""
    _, along = geometry.resolution(shape.to_wall(p)[:, 1])
    return np.clip(along / along.max(), 0.05, 1) if len(along) else along
