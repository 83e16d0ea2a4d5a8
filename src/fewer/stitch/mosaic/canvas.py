"""The map: strips laid down one after the other, and for each map pixel the frame and place it came from.

Multi-band: a strip is split by Gaussian blurs into bands; coarse bands are averaged with smooth weights (no
seams in brightness), fine bands almost take the best frame alone (no double vessels). One frame is held at
a time; a
canvas above half a gigabyte lives in a temporary file.
"""

import tempfile
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fewer.stitch.mosaic.exposure import Exposure, wall_distance
from fewer.stitch.options import BlendOptions
from fewer.stitch.unfold.geometry import TAU, Geometry
from fewer.stitch.unfold.strip import StripShape, picture_coordinates, unwrap

_IN_MEMORY = 512 * 2**20
_FEATHER = 16
_BAND_SIGMAS = (2.0, 6.0, 14.0, 30.0)


@dataclass(frozen=True, slots=True)
class Provenance:
    """For every map pixel: the frame (number in the video, -1 = never seen) and x, y in its picture."""

    frame: Int[np.ndarray, "height width"]
    x: Float[np.ndarray, "height width"]
    y: Float[np.ndarray, "height width"]

    def locate(self, x: int, y: int) -> tuple[int, float, float] | None:
        """Frame and picture position behind map pixel (x, y); None where nothing was seen."""
        frame = int(self.frame[y, x])
        return None if frame < 0 else (frame, float(self.x[y, x]), float(self.y[y, x]))


class Canvas:
    """Accumulates one segment. Row 0 is the nearest depth any frame saw; columns go once round."""

    def __init__(
        self, geometry: Geometry, poses: Float[np.ndarray, "frames 6"], width: int, options: BlendOptions
    ) -> None:
        self._geometry, self._poses, self._options, self.width = geometry, poses, options, width
        self.scale = width / TAU
        first = geometry.near_depth() * 0.6
        far = min(geometry.far_depth(), geometry.near_depth() + options.near)
        self._band = (first, far)
        self.top = float(poses[:, 5].min() + first)
        self.height = max(1, int(np.ceil((poses[:, 5].max() + far - self.top) * self.scale)) + 1)
        self._bands = options.bands if options.blend == "multiband" else 1
        cells = self.height * width
        layers = self._bands * 4 + 1
        self._sum = _zeros((self._bands, self.height, width, 3), cells * layers * 4)
        self._weight = _zeros((self._bands, self.height, width), cells * layers * 4)
        self._best = _zeros((self.height, width), cells * layers * 4)
        self.frame = np.full((self.height, width), -1, np.int32)
        self.source = np.zeros((self.height, width, 2), np.float32)

    def prepare(
        self, place: int, index: int, picture: UInt8[np.ndarray, "rows columns 3"],
        clear: Bool[np.ndarray, "rows columns"], exposure: Exposure | None,
    ) -> "Laid":  # fmt: skip
        """Unwrap and level frame number `index`, the segment's `place`-th; touches nothing, so threads may
        share it.
        """
        pose = self._poses[place]
        start = int(np.floor((pose[5] + self._band[0] - self.top) * self.scale))
        rows = min(self.height - start, int((self._band[1] - self._band[0]) * self.scale))
        shape = StripShape(self.width, rows, self.top + start / self.scale - pose[5])
        places = picture_coordinates(self._geometry, shape, pose[:4], turn=pose[4])
        strip = unwrap(picture, places).astype(np.float32)
        weight = _sampling_weight(places, clear)
        # the far end fades out: a frame must not stop at a line across the map
        weight *= np.minimum(np.arange(rows, 0, -1, dtype=np.float32) / max(0.3 * rows, 1), 1)[:, None]
        if exposure is not None:
            depth = shape.first_depth + np.arange(rows) / self.scale
            theta = np.arange(self.width) / self.scale - pose[4]
            strip *= exposure.factor(place, wall_distance(self._geometry, depth, theta, pose))
        return Laid(index, slice(start, start + rows), self._split(strip, weight), weight, places)

    def add(self, laid: "Laid") -> None:
        """Lay down a prepared frame."""
        best = self._best[laid.area]
        last = self._options.blend == "last"
        wins = (laid.weight > 0) if last else (laid.weight > best)
        for band, level in enumerate(laid.levels):
            if last:
                self._sum[band, laid.area][wins] = level[wins]
                self._weight[band, laid.area][wins] = 1
                continue
            share = _power(laid.weight, self._powers[band])
            self._weight[band, laid.area] += share
            level *= share[..., None]
            self._sum[band, laid.area] += level
        best[wins] = laid.weight[wins]
        self.frame[laid.area][wins] = laid.index
        self.source[laid.area][wins] = laid.places[wins]

    def finish(self) -> tuple[UInt8[np.ndarray, "height width 3"], Provenance]:
        """The picture (black where nothing was seen) and its provenance."""
        picture = np.zeros((self.height, self.width, 3), np.uint8)
        for start in range(0, self.height, 1024):
            area = slice(start, start + 1024)
            weight = np.maximum(self._weight[:, area], 1e-12)
            value = (self._sum[:, area] / weight[..., None]).sum(axis=0)
            value[self.frame[area] < 0] = 0
            picture[area] = np.clip(np.round(value), 0, 255).astype(np.uint8)
        return picture, Provenance(self.frame, self.source[..., 0].copy(), self.source[..., 1].copy())

    def _split(self, strip: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        """The strip's bands, finest first; their sum is the strip."""
        seen = (weight > 0).astype(np.float32)
        levels = []
        for band in range(self._bands - 1):
            lower = _blur_inside(strip, seen, _BAND_SIGMAS[band])
            levels.append(strip - lower)
            strip = lower
        return [*levels, strip]

    @property
    def _powers(self) -> list[int]:
        """Of the weights: 6 nearly takes the best frame, 1 averages. Noise is fine detail too, so not
        higher.
        """
        if self._bands == 1:
            return [1]
        return [6] + [2] * (self._bands - 2) + [1]


@dataclass(frozen=True, slots=True)
class Laid:
    """A frame ready to be laid down on rows `area`: its bands, its weight and where its pixels come from."""

    index: int
    area: slice
    levels: list[np.ndarray]
    weight: Float[np.ndarray, "rows width"]
    places: Float[np.ndarray, "rows width 2"]


def _sampling_weight(
    places: Float[np.ndarray, "rows width 2"], clear: Bool[np.ndarray, "height columns"]
) -> Float[np.ndarray, "rows width"]:
    """How finely the picture samples the map here, times a feather towards the edge of what is clear."""
    reach = cv2.distanceTransform(clear.view(np.uint8), cv2.DIST_L2, 3)
    feather = cv2.remap(np.minimum(reach / _FEATHER, 1), places[..., 0], places[..., 1], cv2.INTER_LINEAR)
    feather[feather < 1.01 / _FEATHER] = 0
    along_x, along_y = (cv2.subtract(places[1:], places[:-1])[..., axis] for axis in (0, 1))
    down = cv2.magnitude(np.ascontiguousarray(along_x), np.ascontiguousarray(along_y))
    # along the rows sampling is never coarser than along the depth at the far end, nor scarce at the near end
    fine = np.minimum(np.concatenate([down, down[-1:]]), 1.0)
    return feather * fine


def _power(weight: np.ndarray, power: int) -> np.ndarray:
    if power == 1:
        return weight
    square = weight * weight
    return square if power == 2 else square * square * square


def _blur_inside(strip: np.ndarray, seen: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of the seen pixels only, periodic along the columns."""
    pad = int(3 * sigma)
    wide = np.concatenate([strip[:, -pad:], strip, strip[:, :pad]], axis=1)
    there = np.concatenate([seen[:, -pad:], seen, seen[:, :pad]], axis=1)
    total = cv2.GaussianBlur(wide * there[..., None], (0, 0), sigma)
    count = cv2.GaussianBlur(there, (0, 0), sigma)
    return (total / np.maximum(count, 1e-3)[..., None])[:, pad:-pad]


def _zeros(shape: tuple[int, ...], total_bytes: int) -> np.ndarray:
    if total_bytes <= _IN_MEMORY:
        return np.zeros(shape, np.float32)
    with tempfile.NamedTemporaryFile(prefix="fewer-canvas-") as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
