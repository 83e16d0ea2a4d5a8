"""One pair of frames: match with every matcher, filter, verify. A pure function of the two views, so that
workers may do it ahead of the tracker, which alone decides what is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fewer.stitch.homography.density import density_weights
from fewer.stitch.homography.project import symmetric_error
from fewer.stitch.homography.sample import weighted_msac
from fewer.stitch.match.features import Guide, PairMatcher, StripView, match_features
from fewer.stitch.match.pool import Matches, Pool, displacement, fill_pool, motion_reach, winning_shift
from fewer.stitch.options import StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.strip import StripShape

_GUIDES = 12
_MOST_MATCHES = 250
_VERIFY_PIXELS = 10.0  # before the pose is known a homography leaves several pixels


@dataclass(frozen=True, slots=True)
class Spot:
    """A frame's number and first pose."""

    index: int
    pose: Float[np.ndarray, "4"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two frames to be matched: its number, first pose and view."""

    index: int
    pose: Float[np.ndarray, "4"]
    view: StripView

    @property
    def spot(self) -> Spot:
        return Spot(self.index, self.pose)


@dataclass(frozen=True, slots=True)
class Balanced:
    """At most 250 matches of a pair, the surest, weighted by density so that all sides have a say: a row for
    each (x, y in the new picture, x, y in the old one).
    """

    table: Float[np.ndarray, "matches 4"]
    weight: Float[np.ndarray, "matches"]


@dataclass(frozen=True, slots=True)
class Found:
    """What matching two frames gave: a row for each match (x, y in the new picture, x, y in the old one,
    confidence), the displacement of the strips, the counts of the filters, and what the poses are found from.
    """

    table: Float[np.ndarray, "matches 5"]
    shift: Float[np.ndarray, "2"]
    counts: dict[str, int]
    edge: Balanced


def find_pair(
    new: Side,
    old: Side,
    geometry: Geometry,
    shape: StripShape,
    options: StitchOptions,
    learned: Mapping[str, PairMatcher],
    proposed: Mapping[str, object] | None = None,
) -> Found | None:
    """Match, filter and verify; None when too little is left. Touches nothing, so workers may do it ahead."""
    groups = matches_of(new.view, old.view, shape, options, learned, proposed)
    return found_among(groups, new.spot, old.spot, geometry, shape, options)


def found_among(
    groups: Sequence[Matches], new: Spot, old: Spot, geometry: Geometry, shape: StripShape,
    options: StitchOptions,
) -> Found | None:  # fmt: skip
    """What is left of all matchers' matches after the filters, if they hang together."""
    pool = fill_pool(groups, (shape.height, shape.width), options.match)
    matches = pool.matches
    if not verified(pool, shape, options, (options.seed, new.index, old.index)):
        return None
    xy_new = geometry.to_picture(shape.to_wall(matches.p), new.pose)
    xy_old = geometry.to_picture(shape.to_wall(matches.q), old.pose)
    table = np.column_stack([xy_new, xy_old, matches.confidence]).astype(np.float32)
    edge = balanced(table, new.pose, old.pose, geometry, shape, options)
    return Found(table, pool.shift, pool.counts, edge)


def balanced(
    table: Float[np.ndarray, "matches 5"], new: Float[np.ndarray, "4"], old: Float[np.ndarray, "4"],
    geometry: Geometry, shape: StripShape, options: StitchOptions,
) -> Balanced:  # fmt: skip
    """Of all matches of two frames with these first poses."""
    exact = table.astype(np.float64)
    chosen = np.argsort(-exact[:, 4], kind="stable")[:_MOST_MATCHES]
    p = shape.to_pixels(geometry.to_wall(exact[chosen, :2], new))
    q = shape.to_pixels(geometry.to_wall(exact[chosen, 2:4], old))
    weight = density_weights(
        p, q, exact[chosen, 4], shape.width, options.homography.fit_gamma, options.homography
    )
    return Balanced(table[chosen, :4], weight.astype(np.float32))


def matches_of(
    new: StripView,
    old: StripView,
    shape: StripShape,
    options: StitchOptions,
    learned: Mapping[str, PairMatcher],
    proposed: Mapping[str, object] | None = None,
) -> list[Matches]:
    """Each matcher's matches of two strips. SIFT votes first and shows ORB where to look. `proposed` holds
    what learned matchers have said of the two before.
    """
    groups: list[Matches] = []
    guide: Guide | None = None
    for name in [name for name in ("sift", "orb") if name in new.features and name in old.features]:
        groups.append(
            match_features(name, new.features[name], old.features[name], options.match.ratio, guide)
        )
        guide = guide_of(groups[-1], shape)
    return groups + [matcher(new, old, (proposed or {}).get(name)) for name, matcher in learned.items()]


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
