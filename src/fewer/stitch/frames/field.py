"""The round (or cut, or eight-sided) field of view, and what is burned into the picture.

Nothing outside the field is ever written: side panels, names and dates end here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from fewer.core.errors import DataError

ERODE = 4
DARK = 12  # grey levels; a picture without a brighter pixel is black


@dataclass(frozen=True, slots=True)
class Field:
    """Where the endoscope sees. `radius` is that of the fitted circle, or of the mask's area."""

    mask: Bool[np.ndarray, "height width"]
    overlay: Bool[np.ndarray, "height width"]
    centre: tuple[float, float]
    radius: float
    is_circle: bool

    @property
    def usable(self) -> Bool[np.ndarray, "height width"]:
        """Field without burned-in text."""
        return self.mask & ~self.overlay


def find_field(pictures: Iterable[UInt8[np.ndarray, "height width 3"]], seed: int = 0) -> Field:
    """Field of about thirty pictures of one size. Raises DataError when all are black.

    Maximum over the pictures, Otsu's threshold clipped to [12, 40], the component at the centre, its convex
    hull; a circle when 70 % of the hull lies within 3 pixels of one.
    """
    stack = list(pictures)
    if not stack:
        raise DataError("no frames to find the field of view in")
    levels = [cv2.max(cv2.max(*cv2.split(picture)[:2]), picture[..., 2]) for picture in stack]
    brightest = np.maximum.reduce(levels)
    if brightest.max() < DARK:
        raise DataError("all frames are black; nothing to stitch")
    otsu, _ = cv2.threshold(brightest, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    lit = (brightest > np.clip(otsu, 12, 40)).astype(np.uint8)
    square = np.ones((5, 5), np.uint8)
    lit = cv2.morphologyEx(cv2.morphologyEx(lit, cv2.MORPH_OPEN, square), cv2.MORPH_CLOSE, square)
    hull = _hull_of_centre(lit)
    overlay = _burned_in(levels)
    circle = _fit_circle(hull, lit.shape, seed)
    filled = np.zeros(lit.shape, np.uint8)
    if circle is not None:
        (x, y), radius = circle
        rows, columns = np.indices(lit.shape)
        filled[np.hypot(columns - x, rows - y) <= radius] = 1
        return Field(_eroded(filled), overlay, (x, y), radius, True)
    cv2.fillConvexPoly(filled, hull.astype(np.int32), 1)
    moments = cv2.moments(filled, binaryImage=True)
    centre = (moments["m10"] / moments["m00"], moments["m01"] / moments["m00"])
    return Field(_eroded(filled), overlay, centre, float(np.sqrt(filled.sum() / np.pi)), False)


def field_from_mask(mask: Bool[np.ndarray, "height width"]) -> Field:
    """Field given by the user."""
    if not mask.any():
        raise DataError("the mask picture is black everywhere; its bright pixels must be the field of view")
    (x, y), radius = cv2.minEnclosingCircle(np.argwhere(mask)[:, ::-1].astype(np.float32))
    rows, columns = np.indices(mask.shape)
    disc = np.hypot(columns - x, rows - y) <= radius
    is_circle = bool(mask.sum() >= 0.97 * disc.sum())
    return Field(mask, np.zeros_like(mask), (float(x), float(y)), float(radius), is_circle)


def _hull_of_centre(lit: np.ndarray) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(lit)
    height, width = lit.shape
    label = labels[height // 2, width // 2]
    if label == 0:  # a dark lumen at the centre of every frame: the largest component around it
        sizes = stats[:, cv2.CC_STAT_AREA].copy()
        sizes[0] = 0
        label = int(sizes.argmax())
    if stats[label, cv2.CC_STAT_AREA] < 0.02 * lit.size:
        raise DataError("no lit field of view was found in the frames")
    mine = labels == label
    rows = np.flatnonzero(mine.any(axis=1))
    # the hull hangs on the outermost pixels of each row alone
    ends = np.stack([mine[rows].argmax(axis=1), width - 1 - mine[rows, ::-1].argmax(axis=1)], axis=1)
    points = np.stack([ends.ravel(), rows.repeat(2)], axis=1).astype(np.int32)
    return cv2.convexHull(points)[:, 0].astype(np.float64)


def _fit_circle(
    hull: np.ndarray, shape: tuple[int, ...], seed: int
) -> tuple[tuple[float, float], float] | None:
    """RANSAC circle through points sampled along the hull, away from the picture's own edges."""
    closed = np.vstack([hull, hull[:1]])
    lengths = np.hypot(*np.diff(closed, axis=0).T)
    along = np.concatenate([[0], np.cumsum(lengths)])
    spots = np.linspace(0, along[-1], 720, endpoint=False)
    points = np.stack([np.interp(spots, along, closed[:, axis]) for axis in (0, 1)], axis=1)
    height, width = shape[:2]
    x, y = points.T
    free = (x > 2) & (y > 2) & (x < width - 3) & (y < height - 3)
    if free.sum() < 120:
        return None
    points = points[free]
    random = np.random.default_rng([seed, 4])
    circles = _circles_through(points[[random.choice(len(points), 3, replace=False) for _ in range(200)]])
    close = np.abs(np.hypot(*(points - circles[:, None, :2]).transpose(2, 0, 1)) - circles[:, 2:]) < 3
    counts = close.sum(axis=1)
    if not len(counts) or counts.max() < 0.7 * len(points):
        return None
    # algebraic least squares: x^2 + y^2 = 2 cx x + 2 cy y + (r^2 - cx^2 - cy^2)
    chosen = points[close[counts.argmax()]]
    system = np.column_stack([2 * chosen, np.ones(len(chosen))])
    (cx, cy, rest), *_ = np.linalg.lstsq(system, (chosen**2).sum(axis=1), rcond=None)
    # half a pixel: the hull runs through centres of the outermost lit pixels
    return (float(cx), float(cy)), float(np.sqrt(rest + cx**2 + cy**2)) + 0.5


def _circles_through(three: np.ndarray) -> np.ndarray:
    """(cx, cy, radius) of the circles through three points each, without those of points on a line."""
    system = np.concatenate([2 * three, np.ones((*three.shape[:2], 1))], axis=2)
    system, three = (each[np.abs(np.linalg.det(system)) >= 1e-6] for each in (system, three))
    cx, cy, rest = np.linalg.solve(system, (three**2).sum(axis=2)[..., None])[..., 0].T
    return np.stack([cx, cy, np.sqrt(np.maximum(rest + cx**2 + cy**2, 0))], axis=1)


def _burned_in(levels: list[np.ndarray]) -> np.ndarray:
    """Bright pixels that never change are text or a navigation box. `levels`: the brightest channel of each
    picture.
    """
    if len(levels) < 5:
        return np.zeros(levels[0].shape, bool)
    stack = np.stack(levels)
    high, low = stack.max(axis=0), stack.min(axis=0)
    # a deviation below 2 leaves a range below 2 sqrt(2 n): few pixels are worth the sums
    still = (high > 120) & (high - low < 2 * np.sqrt(2 * len(levels)))
    few = stack[:, still].astype(np.float64)
    total, squares = few.sum(axis=0), (few**2).sum(axis=0)  # whole numbers: exact in any order
    mean = total / len(levels)
    still[still] = (squares / len(levels) - mean**2 < 4) & (mean > 120)  # standard deviation below 2
    if still.mean() > 0.3:  # the whole picture stands still: that is not an overlay
        return np.zeros(still.shape, bool)
    return cv2.dilate(still.astype(np.uint8), np.ones((11, 11), np.uint8)).astype(bool)


def _eroded(filled: np.ndarray) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * ERODE + 1, 2 * ERODE + 1))
    padded = cv2.copyMakeBorder(filled, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    return cv2.erode(padded, kernel)[1:-1, 1:-1].astype(bool)
