"""Where the lumen is: from shading, from the radial fall of light, and from the flow of matches.

Stand-ins for the paper's monocular depth network, whose weights cannot be shipped; give your own as a
`DepthProvider` (picture -> relative depth, larger = deeper).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from fewer.stitch.frames.field import Field

DepthProvider = Callable[[np.ndarray], np.ndarray]
_SIDE = 160
_SHADING_SIGMA, _RINGS_SIGMA = 0.05, 0.02  # shares of the field's radius


@dataclass(frozen=True, slots=True)
class Lumen:
    """Centre in pixels and its standard deviation; `contrast` is how much darker it is than the rest
    (0..1).
    """

    x: float
    y: float
    sigma: float
    contrast: float


def find_lumen(
    picture: UInt8[np.ndarray, "height width 3"],
    field: Field,
    shining: Bool[np.ndarray, "height width"],
    depth: DepthProvider | None = None,
) -> Lumen | None:
    """None when the picture shows no dark lumen (the lens looks at a wall)."""
    scale = _SIDE / max(picture.shape[:2])
    size = (max(8, round(picture.shape[1] * scale)), max(8, round(picture.shape[0] * scale)))
    centre, radius = np.array(field.centre) * scale, field.radius * scale
    mask = cv2.resize(field.usable.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    shine = cv2.resize(shining.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    green = cv2.resize(picture[..., 1], size, interpolation=cv2.INTER_AREA).astype(np.float32)
    clear = (mask & ~shine).astype(np.float32)
    light = _masked_blur((green / 255) ** 2.2 * 255, clear, 0.03 * radius)
    if depth is None:
        depth_map = 1 / np.sqrt(light + 1)
    else:
        depth_map = cv2.resize(np.asarray(depth(picture), np.float32), size, interpolation=cv2.INTER_AREA)
    rows, columns = np.indices(depth_map.shape)
    inner = mask & (np.hypot(columns - centre[0], rows - centre[1]) < 0.8 * radius)
    if inner.sum() < 50:
        return None
    contrast = _lumen_contrast(light, inner)
    if contrast < 0.5:
        return None
    shading = _from_shading(depth_map, inner, 0.15 * radius)
    radial = _from_rings(light, shading, radius)
    spread = float(np.hypot(*(shading - radial)))
    # inverse-variance mean: on rendered tubes shading errs by 5 % of the radius (it looks too far ahead where
    # the
    # tube bends), the rings by 2 %
    trust = _RINGS_SIGMA**-2 / (_RINGS_SIGMA**-2 + _SHADING_SIGMA**-2)
    x, y = (trust * radial + (1 - trust) * shading) / scale
    return Lumen(float(x), float(y), max(0.03 * radius, spread) / scale, contrast)


def focus_of_expansion(
    before: Float[np.ndarray, "matches 2"], after: Float[np.ndarray, "matches 2"]
) -> Float[np.ndarray, "2"]:
    """The point all motion runs to or from: least squares on lines through q along q - p, weight |q - p|."""
    motion = after - before
    length = np.maximum(np.hypot(motion[:, 0], motion[:, 1]), 1e-9)
    normal = np.stack([-motion[:, 1], motion[:, 0]], axis=1) / length[:, None]
    weighted = normal * length[:, None]
    system = weighted.T @ normal
    right = weighted.T @ (normal * after).sum(axis=1)
    return np.linalg.lstsq(system, right, rcond=None)[0]


class LumenTrack:
    """Median of five over time; holds the last centre for at most ten frames without a lumen."""

    def __init__(self, hold: int = 10) -> None:
        self._recent: deque[Lumen] = deque(maxlen=5)
        self._missing, self._hold = 0, hold

    def update(self, lumen: Lumen | None) -> Lumen | None:
        """The centre to use now, None when it is lost."""
        if lumen is None:
            self._missing += 1
            return self._recent[-1] if self._recent and self._missing <= self._hold else None
        self._missing = 0
        self._recent.append(lumen)
        middle = np.median([(kept.x, kept.y) for kept in self._recent], axis=0)
        # the newest guess unless it jumps: the hand really moves, a median alone would lag
        if np.hypot(lumen.x - middle[0], lumen.y - middle[1]) > 6 * lumen.sigma:
            return Lumen(float(middle[0]), float(middle[1]), lumen.sigma, lumen.contrast)
        return lumen


def _masked_blur(values: np.ndarray, weight: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian that looks only where weight is one: highlights are filled from their surroundings."""
    sigma = max(sigma, 0.8)
    total = cv2.GaussianBlur(values * weight, (0, 0), sigma)
    return total / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-3)


def _lumen_contrast(light: np.ndarray, inner: np.ndarray) -> float:
    values = light[inner]
    dark, usual = np.percentile(values, 2), np.percentile(values, 75)
    return float(1 - (dark + 0.5) / (usual + 0.5))


def _from_shading(depth: np.ndarray, inner: np.ndarray, reach: float) -> np.ndarray:
    """Weighted mean of the deepest 2 % (largest component), then three mean-shift steps."""
    edge = np.quantile(depth[inner], 0.98)
    deepest = ((depth >= edge) & inner).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(deepest)
    sizes = stats[:, cv2.CC_STAT_AREA].copy()
    sizes[0] = 0
    chosen = labels == sizes.argmax()
    rows, columns = np.indices(depth.shape)
    weight = depth * chosen
    point = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
    base = np.quantile(depth[inner], 0.8)
    for _ in range(3):
        near = inner & (np.hypot(columns - point[0], rows - point[1]) < reach)
        weight = np.where(near, np.maximum(depth - base, 0), 0)
        if weight.sum() <= 0:
            break
        point = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
    return point


def _from_rings(light: np.ndarray, start: np.ndarray, radius: float) -> np.ndarray:
    """The centre round which brightness is most alike at each distance: coarse to fine search."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    rings = np.linspace(0.2, 0.4, 6)[:, None] * radius
    offset_x, offset_y = rings * np.cos(angles), rings * np.sin(angles)
    values = np.log(light + 2).astype(np.float32)
    best = start
    for step in (0.04 * radius, 0.015 * radius):
        moves = step * np.stack(np.meshgrid(np.arange(-2, 3), np.arange(-2, 3)), axis=-1).reshape(-1, 2)
        places = best + moves
        x = np.clip(places[:, 0, None, None] + offset_x, 0, light.shape[1] - 1).astype(np.float32)
        y = np.clip(places[:, 1, None, None] + offset_y, 0, light.shape[0] - 1).astype(np.float32)
        flat = (len(places), -1)
        sampled = cv2.remap(values, x.reshape(flat), y.reshape(flat), cv2.INTER_LINEAR).reshape(x.shape)
        best = places[sampled.var(axis=2).sum(axis=1).argmin()]
    return best
