"""The map: strips laid down one after the other, and for each map pixel the frame and place it came from.

Multi-band: a strip is split by Gaussian blurs into bands; coarse bands are averaged with smooth weights (no
seams in brightness), fine bands almost take the best frame alone (no double vessels). One frame is held at
a time; a large canvas lives in a temporary file, of which only the rows at work are in memory.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fewer.stitch.mosaic.exposure import Exposure, wall_distance
from fewer.stitch.mosaic.layout import Layout
from fewer.stitch.mosaic.store import put_out, zeros
from fewer.stitch.unfold.strip import picture_coordinates, unwrap

IN_MEMORY = 256 * 2**20
FEATHER = 16
BAND_SIGMAS = (2.0, 6.0, 14.0, 30.0)
_PUT_OUT_EVERY = 32


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

    def __init__(self, layout: Layout) -> None:
        self._layout, self.top, self.height = layout, layout.top, layout.height
        size, bands = (layout.height, layout.width), layout.bands
        self._on_disk = self._layout.bytes_held > IN_MEMORY
        self._sum = zeros((bands, *size, 4), np.float32, self._on_disk)
        self._best = zeros(size, np.float32, self._on_disk)
        self.frame = zeros(size, np.int32, self._on_disk)
        self.source = zeros((*size, 2), np.float32, self._on_disk)
        self.frame -= 1
        self._added = 0

    @property
    def bytes_laid(self) -> int:
        """What one prepared frame takes."""
        return self._layout.bytes_laid

    def prepare(
        self, place: int, index: int, picture: UInt8[np.ndarray, "rows columns 3"],
        clear: Bool[np.ndarray, "rows columns"], exposure: Exposure | None,
    ) -> "Laid":  # fmt: skip
        """Unwrap and level frame number `index`, the segment's `place`-th; touches nothing, so threads may
        share it.
        """
        layout, pose = self._layout, self._layout.poses[place]
        shape = layout.shape(place)
        places = picture_coordinates(layout.geometry, shape, pose[:4], turn=pose[4])
        strip = unwrap(picture, places).astype(np.float32)
        weight = _sampling_weight(places, clear)
        # the far end fades out: a frame must not stop at a line across the map
        weight *= far_fade(shape.height)[:, None]
        if exposure is not None:
            depth = shape.first_depth + np.arange(shape.height) / layout.scale
            theta = np.arange(shape.width) / layout.scale - pose[4]
            strip = cv2.multiply(
                strip, exposure.factor(place, wall_distance(layout.geometry, depth, theta, pose))
            )
        shares = [_power(weight, power) for power in layout.powers]
        layers = [
            _weighted(level, share) for level, share in zip(self._split(strip, weight), shares, strict=True)
        ]
        return Laid(index, layout.area(place), layers, weight, places)

    def add(self, laid: "Laid") -> None:
        """Lay down a prepared frame."""
        best = self._best[laid.area]
        last = self._layout.options.blend == "last"
        wins = (laid.weight > 0) if last else (laid.weight > best)
        for band, layer in enumerate(laid.layers):
            under = self._sum[band, laid.area]
            if last:
                np.copyto(under, layer / np.maximum(layer[..., 3:], 1e-12), where=wins[..., None])
            else:
                under += layer
        np.copyto(best, laid.weight, where=wins)
        np.copyto(self.frame[laid.area], np.int32(laid.index), where=wins)
        np.copyto(self.source[laid.area], laid.places, where=wins[..., None])
        self._added += 1
        if self._on_disk and self._added % _PUT_OUT_EVERY == 0:
            self._put_out()

    def finish(self) -> tuple[UInt8[np.ndarray, "height width 3"], Provenance]:
        """The picture (black where nothing was seen) and its provenance."""
        picture = zeros((*self.frame.shape, 3), np.uint8, self._on_disk)
        for start in range(0, self.height, 1024):
            area = slice(start, start + 1024)
            sums = self._sum[:, area]
            value = (sums[..., :3] / np.maximum(sums[..., 3:], 1e-12)).sum(axis=0)
            value[self.frame[area] < 0] = 0
            picture[area] = np.clip(np.round(value), 0, 255).astype(np.uint8)
            if self._on_disk:
                self._put_out()
                put_out(picture)
        return picture, Provenance(self.frame, self.source[..., 0], self.source[..., 1])

    def _put_out(self) -> None:
        put_out(self._sum, self._best, self.frame, self.source)

    def _split(self, strip: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        """The strip's bands, finest first; their sum is the strip."""
        seen = (weight > 0).astype(np.float32)
        levels = []
        for band in range(self._layout.bands - 1):
            lower = _blur_inside(strip, seen, BAND_SIGMAS[band])
            levels.append(cv2.subtract(strip, lower))
            strip = lower
        return [*levels, strip]


@dataclass(frozen=True, slots=True)
class Laid:
    """A frame ready to be laid down on rows `area`: its bands times their weight, with the weight as a fourth
    channel, its own weight and where its pixels come from.
    """

    index: int
    area: slice
    layers: list[np.ndarray]
    weight: Float[np.ndarray, "rows width"]
    places: Float[np.ndarray, "rows width 2"]


def far_fade(rows: int) -> Float[np.ndarray, "rows"]:
    """One, falling to nothing over the last three tenths."""
    return np.minimum(np.arange(rows, 0, -1, dtype=np.float32) / max(0.3 * rows, 1), 1)


def _sampling_weight(
    places: Float[np.ndarray, "rows width 2"], clear: Bool[np.ndarray, "height columns"]
) -> Float[np.ndarray, "rows width"]:
    """How finely the picture samples the map here, times a feather towards the edge of what is clear."""
    reach = cv2.distanceTransform(clear.view(np.uint8), cv2.DIST_L2, 3)
    reach = np.minimum(reach, FEATHER, out=reach)
    feather = cv2.remap(reach, places, None, cv2.INTER_LINEAR)
    feather[feather < 1.01] = 0
    feather *= 1 / FEATHER
    fine = cv2.magnitude(*cv2.split(cv2.subtract(places[1:], places[:-1])))
    # along the rows sampling is never coarser than along the depth at the far end, nor scarce at the near end
    np.minimum(fine, 1.0, out=fine)
    feather[:-1] *= fine
    feather[-1] *= fine[-1]
    return feather


def _power(weight: np.ndarray, power: int) -> np.ndarray:
    if power == 1:
        return weight
    square = weight * weight
    return square if power == 2 else square * square * square


def _weighted(level: np.ndarray, share: np.ndarray) -> Float[np.ndarray, "rows width 4"]:
    """Colour times weight, and the weight (OpenCV: numpy is slow over a last axis of three)."""
    blue, green, red = cv2.split(level)
    return cv2.merge([cv2.multiply(plane, share) for plane in (blue, green, red)] + [share])


def _blur_inside(strip: np.ndarray, seen: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of the seen pixels only, periodic along the columns; wide ones on a smaller picture."""
    pad, shrink = int(3 * sigma), max(1, int(sigma / 1.5))
    height, width = seen.shape
    weighted = cv2.copyMakeBorder(_weighted(strip, seen), 0, 0, pad, pad, cv2.BORDER_WRAP)
    size = (width + 2 * pad, height)
    if shrink > 1:
        weighted = cv2.resize(
            weighted, (-(-size[0] // shrink), -(-height // shrink)), interpolation=cv2.INTER_AREA
        )
    *planes, count = cv2.split(cv2.GaussianBlur(weighted, (0, 0), sigma / shrink))
    count = np.maximum(count, 1e-3, out=count)
    lower = cv2.merge([cv2.divide(plane, count) for plane in planes])
    if shrink > 1:
        lower = cv2.resize(lower, size, interpolation=cv2.INTER_LINEAR)
    return lower[:, pad:-pad]
