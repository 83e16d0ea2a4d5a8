"""SIFT and ORB points of a strip, found once per frame, and their mutual nearest neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from fewer.stitch.match.pool import Matches
from fewer.stitch.options import MatchOptions
from fewer.stitch.unfold.strip import PAD, pad_round

BORDER = 8


@dataclass(frozen=True, slots=True)
class Features:
    """Points in strip pixels (columns in [0, width)), strongest first, with one descriptor a row."""

    xy: Float[np.ndarray, "points 2"]
    descriptors: np.ndarray

    def strongest(self, count: int) -> "Features":
        return Features(self.xy[:count], self.descriptors[:count])


@dataclass(frozen=True, slots=True)
class StripView:
    """What matchers see of a frame: the equalised grey strip, where it may be trusted, and its points.

    `learned` is where learned matchers put what they made of the strip, so that it is made once a frame.
    """

    grey: UInt8[np.ndarray, "height width"]
    mask: Bool[np.ndarray, "height width"]
    features: dict[str, Features]
    learned: dict[str, object] = field(default_factory=dict, compare=False)


@runtime_checkable
class PairMatcher(Protocol):
    """A learned matcher. What it makes of one strip lies in the strip's `learned`, what it makes of two comes
    from `propose`; the call does the rest of the work. `together` is how many strips it wants at a time: one
    on a processor, a group on a GPU, where starting the work costs more than doing it.
    """

    together: int

    def look(self, views: Sequence[StripView]) -> None: ...

    def propose(self, pairs: Sequence[tuple[StripView, StripView]]) -> Sequence[object]: ...

    def __call__(self, new: StripView, old: StripView, proposed: object = None) -> Matches: ...


def equalise(strip: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width"]:
    """Green, in which blood shows best, with adaptive histogram equalisation (CLAHE, clip 3, 8 x 8 tiles)."""
    green = cv2.extractChannel(strip, 1)
    return cv2.createCLAHE(clipLimit=3.0, tileGridSize=(8, 8)).apply(green)


def look(
    strip: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"], options: MatchOptions
) -> StripView:
    """Equalise and detect; the strip's ends meet."""
    return detect(equalise(pad_round(strip)), mask, options)


def detect(
    padded: UInt8[np.ndarray, "height padded"], mask: Bool[np.ndarray, "height width"], options: MatchOptions
) -> StripView:
    """Points of an equalised strip that has its ends repeated on either side. They lie at least 8 pixels
    inside the mask.
    """
    grey, side = padded[:, PAD:-PAD], 2 * BORDER + 1
    if not {"sift", "orb"} & set(options.matchers):
        return StripView(grey, mask, {})
    seen = pad_round(mask).astype(np.uint8)
    inside = cv2.erode(seen, np.ones((side, side), np.uint8), borderValue=0)
    calm = _filled(padded, seen)
    found: dict[str, Features] = {}
    if "sift" in options.matchers:
        found["sift"] = _sift(calm, inside, grey.shape[1], options)
    if "orb" in options.matchers:
        found["orb"] = _orb(calm, inside, grey.shape[1], options.orb_features)
    return StripView(grey, mask, found)


@dataclass(frozen=True, slots=True)
class Guide:
    """A displacement that is already known: old points are sought only within `reach` pixels of where it
    leads.
    """

    shift: Float[np.ndarray, "2"]
    reach: float
    width: int


def match_features(
    name: str, new: Features, old: Features, ratio: float, guide: Guide | None = None
) -> Matches:
    """Mutual nearest neighbours that pass the ratio test; confidence 1 - (d1 / d2)^2.

    A `guide` saves binary descriptors most of their comparisons.
    """
    if len(new.xy) < 2 or len(old.xy) < 2:
        return Matches.empty()
    if name == "sift":
        nearest, first, second, mutual = _nearest_by_angle(new.descriptors, old.descriptors)
        keep = mutual & (first < ratio**2 * np.maximum(second, 1e-9))
    elif guide is not None:
        nearest, first, second, mutual = _nearest_around(new, old, guide)
        keep = mutual & (first < ratio**2 * np.maximum(second, 1e-9))
    else:
        nearest, first, second = _nearest_by_bits(new.descriptors, old.descriptors)
        keep = first < ratio**2 * np.maximum(second, 1e-9)
        # looking back is worth its time only for those that passed
        keep[keep] = _is_nearest_back(new.descriptors, old.descriptors[nearest[keep]], first[keep])
    share = first[keep] / np.maximum(second[keep], 1e-9)
    return Matches.of(new.xy[keep], old.xy[nearest[keep]], 1 - share, name)


def _nearest_by_angle(new: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, ...]:
    """Nearest old descriptor of each new one, squared distances of the first and second, and mutuality."""
    squared = 2 - 2 * (new.astype(np.float32) @ old.astype(np.float32).T)
    np.maximum(squared, 0, out=squared)
    rows = np.arange(len(squared))
    nearest = squared.argmin(axis=1)
    first = squared[rows, nearest]
    mutual = first <= squared.min(axis=0)[nearest]  # min down columns is far quicker than argmin
    squared[rows, nearest] = np.inf
    return nearest, first, squared.min(axis=1), mutual


def _nearest_by_bits(new: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest old descriptor of each new one and the squared Hamming distances of the first and second."""
    distance, index = cv2.batchDistance(new, old, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=2)
    first, second = distance.astype(np.float64).T ** 2
    return index[:, 0], first, second


def _nearest_around(new: Features, old: Features, guide: Guide) -> tuple[np.ndarray, ...]:
    """As `_nearest_by_angle`, with squared Hamming distances and only old points near the guide's
    displacement. With no second candidate the second distance is that of unrelated bits.
    """
    count, far = len(new.xy), new.descriptors.shape[1] * 4
    expected, place = (new.xy + guide.shift).astype(np.float32), old.xy.astype(np.float32)
    across = np.abs(np.subtract.outer(np.mod(expected[:, 0], guide.width), place[:, 0]))
    close = (across <= guide.reach) | (across >= guide.width - guide.reach)
    close &= np.abs(np.subtract.outer(expected[:, 1], place[:, 1])) <= guide.reach
    row, column = np.divmod(np.flatnonzero(close), len(place))
    nearest, mutual = np.zeros(count, np.int64), np.zeros(count, bool)
    first, second = np.full(count, np.inf), np.full(count, float(far))
    if len(row):
        words = [np.ascontiguousarray(side.descriptors).view(np.uint64) for side in (new, old)]
        distance = np.add.reduce(np.bitwise_count(words[0][row] ^ words[1][column]), axis=1, dtype=np.int32)
        heads = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
        rows = row[heads]
        first[rows] = np.minimum.reduceat(distance, heads)
        best = np.flatnonzero(distance == first[row])[::-1]
        nearest[row[best]] = column[best]
        back = np.full(len(place), far, np.int32)
        np.minimum.at(back, column, distance)
        mutual[rows] = first[rows] <= back[nearest[rows]]
        distance[column == nearest[row]] = far
        second[rows] = np.minimum(np.minimum.reduceat(distance, heads), far)
    return nearest, first**2, second**2, mutual


def _is_nearest_back(new: np.ndarray, chosen: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Whether no new descriptor is nearer to the chosen old one than the one that chose it."""
    if not len(chosen):
        return np.zeros(0, bool)
    back, _ = cv2.batchDistance(chosen, new, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=1)
    return first <= back[:, 0].astype(np.float64) ** 2


def _filled(grey: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """What is masked takes the mean of its surroundings: its edges would win most of the points."""
    weight = cv2.blur(seen * np.float32(1), (31, 31))
    around = cv2.blur(cv2.multiply(grey, seen, dtype=cv2.CV_32F), (31, 31))
    around = np.where(weight > 0.01, around / np.maximum(weight, 0.01), 128).astype(np.uint8)
    return np.where(seen > 0, grey, around)


def _sift(padded: np.ndarray, inside: np.ndarray, width: int, options: MatchOptions) -> Features:
    # OpenCV doubles the picture first and spends three quarters of its time on that octave
    share = options.sift_scale
    size = (round(padded.shape[1] * share), round(padded.shape[0] * share))
    if share < 1:
        padded = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
        inside = cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST)
    detector = cv2.SIFT_create(
        nfeatures=options.sift_features,
        contrastThreshold=0.01,
        edgeThreshold=10,
        sigma=1.6,
        enable_precise_upscale=True,
    )
    points, descriptors = detector.detectAndCompute(padded, inside)
    if descriptors is None:
        return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))  # RootSIFT
    return _inner(points, root, width, share)


def _orb(padded: np.ndarray, inside: np.ndarray, width: int, count: int) -> Features:
    detector = cv2.ORB_create(nfeatures=count, scaleFactor=1.2, nlevels=8, fastThreshold=5)
    points, descriptors = detector.detectAndCompute(padded, inside)
    if descriptors is None:
        return Features(np.zeros((0, 2)), np.zeros((0, 32), np.uint8))
    return _inner(points, descriptors, width)


def _inner(
    points: Sequence[cv2.KeyPoint], descriptors: np.ndarray, width: int, share: float = 1.0
) -> Features:
    """Points of the unpadded part (their copies in the padding would fail the ratio test), strongest
    first. `share` is the scale at which they were found; pixel centres stay where they are.
    """
    xy = (cv2.KeyPoint.convert(points).astype(np.float64).reshape(-1, 2) + 0.5) / share - 0.5
    xy -= [PAD, 0]
    strength = np.array([point.response for point in points])
    order = np.argsort(-strength, kind="stable")
    order = order[(xy[order, 0] >= 0) & (xy[order, 0] < width)]
    return Features(xy[order], descriptors[order])
