"""The feature filtering pool: matches of all matchers together, and the six filters they pass in order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from fewer.stitch.options import MATCHERS, MatchOptions


@dataclass(frozen=True, slots=True)
class Matches:
    """p in the new strip, q in the old one (pixels), confidence in (0, 1], a bit per matcher that found
    it.
    """

    p: Float[np.ndarray, "matches 2"]
    q: Float[np.ndarray, "matches 2"]
    confidence: Float[np.ndarray, "matches"]
    found_by: Int[np.ndarray, "matches"]

    @classmethod
    def empty(cls) -> "Matches":
        return cls(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))

    @classmethod
    def of(cls, p: np.ndarray, q: np.ndarray, confidence: np.ndarray, matcher: str) -> "Matches":
        """Matches of one matcher; confidence is divided by its own 90th percentile and clipped to 1."""
        if not len(p):
            return cls.empty()
        confidence = np.asarray(confidence, np.float64)
        usual = max(float(np.quantile(confidence, 0.9)), 1e-6)
        bit = np.full(len(p), 1 << MATCHERS.index(matcher), np.int64)
        return cls(
            np.asarray(p, np.float64), np.asarray(q, np.float64), np.clip(confidence / usual, 1e-3, 1), bit
        )

    def __len__(self) -> int:
        return len(self.p)

    def keep(self, which: np.ndarray) -> "Matches":
        return Matches(self.p[which], self.q[which], self.confidence[which], self.found_by[which])


def displacement(
    p: Float[np.ndarray, "matches 2"], q: Float[np.ndarray, "matches 2"], width: int
) -> Float[np.ndarray, "matches 2"]:
    """q - p with columns taken round the tube: in [-width / 2, width / 2)."""
    out = q - p
    out[:, 0] = np.mod(out[:, 0] + width / 2, width) - width / 2
    return out


@dataclass(frozen=True, slots=True)
class Pool:
    """What is left after the filters, the winning displacement and the counts at each stage."""

    matches: Matches
    shift: Float[np.ndarray, "2"]
    counts: dict[str, int]


def fill_pool(
    groups: Sequence[Matches],
    shape: tuple[int, int],
    options: MatchOptions,
    expected: np.ndarray | None = None,
) -> Pool:
    """`shape` is (height, width) of the strips; `expected` replaces the vote when the displacement is
    known.
    """
    height, width = shape
    matches = Matches(
        np.concatenate([group.p for group in groups]) if groups else np.zeros((0, 2)),
        np.concatenate([group.q for group in groups]) if groups else np.zeros((0, 2)),
        np.concatenate([group.confidence for group in groups]) if groups else np.zeros(0),
        np.concatenate([group.found_by for group in groups]) if groups else np.zeros(0, np.int64),
    )
    counts = {
        name: int((matches.found_by == 1 << bit).sum())
        for bit, name in enumerate(MATCHERS)
        if (matches.found_by == 1 << bit).any()
    }
    trust = np.where(matches.found_by == 1 << MATCHERS.index("orb"), options.orb_trust, 1.0)
    matches = replace(matches, confidence=matches.confidence * trust)
    finite = np.isfinite(matches.p).all(axis=1) & np.isfinite(matches.q).all(axis=1)
    for side in (matches.p, matches.q):
        finite &= (side[:, 1] >= 0) & (side[:, 1] < height)
    matches = matches.keep(finite)
    shift = winning_shift(matches, width) if expected is None else np.asarray(expected, np.float64)
    if options.motion_filter:
        matches = _near_motion(matches, shift, height, width)
    counts["after motion"] = len(matches)
    if options.merge_filter:
        matches = _merge(matches, width)
    counts["after merging"] = len(matches)
    if options.neighbour_filter:
        matches = _agreeing(matches, width)
    counts["after neighbours"] = len(matches)
    matches = _capped(matches, shape, options.cell_cap)
    counts["after cap"] = len(matches)
    if len(matches):
        shift = _median_shift(matches, shift, width)
    return Pool(matches, shift, counts)


def winning_shift(matches: Matches, width: int, bin_side: float = 6.0) -> np.ndarray:
    """Peak of the smoothed 2D histogram of displacements."""
    if not len(matches):
        return np.zeros(2)
    move = displacement(matches.p, matches.q, width)
    columns = int(np.ceil(width / bin_side))
    low = move[:, 1].min()
    rows = int((move[:, 1].max() - low) / bin_side) + 1
    column = np.minimum(((move[:, 0] + width / 2) / bin_side).astype(int), columns - 1)
    row = ((move[:, 1] - low) / bin_side).astype(int)
    votes = np.zeros((rows, columns), np.float32)
    np.add.at(votes, (row, column), matches.confidence)
    # the angle is periodic: wrap before smoothing
    smooth = cv2.blur(np.pad(np.pad(votes, ((0, 0), (1, 1)), "wrap"), ((1, 1), (0, 0))), (3, 3))[1:-1, 1:-1]
    top_row, top_column = np.unravel_index(int(smooth.argmax()), votes.shape)
    return np.array([(top_column + 0.5) * bin_side - width / 2, (top_row + 0.5) * bin_side + low])


def motion_reach(height: int) -> float:
    """How far from the winning displacement a match may lie, pixels."""
    return max(24.0, 0.1 * height)


def _near_motion(matches: Matches, shift: np.ndarray, height: int, width: int) -> Matches:
    reach = motion_reach(height)
    off = displacement(matches.p + shift, matches.q, width)
    return matches.keep((np.abs(off) <= reach).all(axis=1))


def _merge(matches: Matches, width: int) -> Matches:
    """Matches with both ends within 2 pixels become one: weighted mean, c = 1 - prod(1 - c_k), bonus for
    support.
    """
    if len(matches) < 2:
        return matches
    move = displacement(matches.p, matches.q, width)
    pairs = cKDTree(np.hstack([matches.p, move])).query_pairs(2.0, output_type="ndarray")
    parent = np.arange(len(matches))
    # strongest first: each weaker match joins the strongest match near it, groups never chain along a vessel
    order = np.argsort(-matches.confidence, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    if len(pairs):
        strong = np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        weak = np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs[:, 1], pairs[:, 0])
        for index in np.argsort(rank[strong], kind="stable"):
            if parent[weak[index]] == weak[index] and parent[strong[index]] == strong[index]:
                parent[weak[index]] = strong[index]
    heads, group = np.unique(parent, return_inverse=True)
    weight = matches.confidence
    total = np.bincount(group, weight)
    base = matches.p[heads]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(group, weight * values[:, axis]) / total for axis in (0, 1)], axis=1)

    p = base + mean(displacement(base[group], matches.p, width))
    q = p + mean(move)
    p[:, 0], q[:, 0] = np.mod(p[:, 0], width), np.mod(q[:, 0], width)
    together = 1 - np.exp(np.bincount(group, np.log(np.maximum(1 - weight, 1e-6))))
    found = np.zeros(len(heads), np.int64)
    np.bitwise_or.at(found, group, matches.found_by)
    support = np.bitwise_count(found)
    return Matches(p, q, np.minimum(1.0, together * (1 + 0.25 * (support - 1.0))), found)


def _agreeing(
    matches: Matches, width: int, neighbours: int = 8, needed: int = 3, reach: float = 4.0
) -> Matches:
    if len(matches) <= neighbours:
        return matches
    move = displacement(matches.p, matches.q, width)
    _, near = cKDTree(matches.p).query(matches.p, k=neighbours + 1)
    off = np.hypot(*(move[near[:, 1:]] - move[:, None]).transpose(2, 0, 1))
    return matches.keep((off < reach).sum(axis=1) >= needed)


def _capped(matches: Matches, shape: tuple[int, int], cap: int) -> Matches:
    """At most `cap` matches in each of 8 x 16 cells, the surest ones."""
    if not len(matches):
        return matches
    height, width = shape
    row = np.clip(matches.p[:, 1] * 8 / height, 0, 7).astype(int)
    column = np.clip(matches.p[:, 0] * 16 / width, 0, 15).astype(int)
    cell = row * 16 + column
    order = np.lexsort((-matches.confidence, cell))
    starts = np.searchsorted(cell[order], cell[order])
    place = np.arange(len(order)) - starts
    return matches.keep(np.sort(order[place < cap]))


def _median_shift(matches: Matches, shift: np.ndarray, width: int) -> np.ndarray:
    off = displacement(matches.p + shift, matches.q, width)
    return shift + np.median(off, axis=0)
