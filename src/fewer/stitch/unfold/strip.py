"""Unwrapping: a frame becomes a strip, x = angle round the tube, y = depth, through `cv2.remap`."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from fewer.stitch.unfold.geometry import TAU, Geometry

PAD = 80
_GRID = 8


@dataclass(frozen=True, slots=True)
class StripShape:
    """Size of a strip and the depth of its row 0; `scale` pixels are one tube radius, along both axes."""

    width: int
    height: int
    first_depth: float

    @property
    def scale(self) -> float:
        return self.width / TAU

    def to_pixels(self, wall: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points 2"]:
        """(angle, depth) -> (column, row); columns lie in [0, width)."""
        column = np.mod(wall[:, 0] * self.scale, self.width)
        return np.stack([column, (wall[:, 1] - self.first_depth) * self.scale], axis=1)

    def to_wall(self, pixels: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points 2"]:
        """(column, row) -> (angle, depth)."""
        return np.stack([pixels[:, 0] / self.scale, pixels[:, 1] / self.scale + self.first_depth], axis=1)


def strip_shape(geometry: Geometry, width: int, far: float | None = None) -> StripShape:
    """Strip from a little nearer than a centred camera sees to `far` (default: the geometry's depth).

    The margin is there because a tilted camera sees nearer wall on one side.
    """
    first = geometry.near_depth() * 0.6
    last = geometry.far_depth() if far is None else far
    return StripShape(width, max(16, round((last - first) * width / TAU)), first)


def picture_coordinates(
    geometry: Geometry, shape: StripShape, pose: Float[np.ndarray, "4"], turn: float = 0.0
) -> Float[np.ndarray, "height width 2"]:
    """Where each pixel of a strip lies in the picture (float32). Exact on every 8th pixel, cubic between.

    `turn` is the angle that column 0 of the frame's own strip has in this one (the roll of the frame on a
    map).
    """
    # remap rounds coordinates to 1/32: fine for a picture, not for coordinates, so resize exactly by steps
    # instead
    coarse = coarse_coordinates(geometry, shape, pose, turn).astype(np.float32)
    down, across = upsampling(shape)
    return cv2.merge([down @ (coarse[..., axis] @ across.T) for axis in (0, 1)])


def coarse_coordinates(
    geometry: Geometry, shape: StripShape, pose: Float[np.ndarray, "4"], turn: float = 0.0
) -> Float[np.ndarray, "rows columns 2"]:
    """`picture_coordinates` of every 8th pixel, from two such steps before the strip to two behind it."""
    columns, rows = coarse_grid(shape)
    grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2).astype(np.float64)
    exact = geometry.to_picture(shape.to_wall(grid) - [turn, 0.0], pose)
    return exact.reshape(len(rows), len(columns), 2)


def coarse_grid(shape: StripShape) -> tuple[Int[np.ndarray, "columns"], Int[np.ndarray, "rows"]]:
    """Columns and rows at which places are computed exactly."""
    return tuple(np.arange(-_GRID * 2, side + _GRID * 3, _GRID) for side in (shape.width, shape.height))  # pyright: ignore


def upsampling(
    shape: StripShape,
) -> tuple[Float[np.ndarray, "height rows"], Float[np.ndarray, "width columns"]]:
    """Matrices that lead from every 8th row and column to all of them: Catmull-Rom at fixed fractions."""
    places = [np.arange(side, dtype=np.float32) / _GRID + 2 for side in (shape.height, shape.width)]
    counts = [len(each) for each in reversed(coarse_grid(shape))]
    down, across = (_cubic_matrix(*each) for each in zip(places, counts, strict=True))
    return down, across


def _cubic_matrix(places: np.ndarray, size: int) -> np.ndarray:
    matrix = np.zeros((len(places), size), np.float32)
    whole = np.floor(places).astype(int)
    t = places - whole
    weights = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    for step, weight in zip((-1, 0, 1, 2), weights, strict=True):
        matrix[np.arange(len(places)), np.clip(whole + step, 0, size - 1)] += weight
    return matrix


def unwrap(
    picture: Shaped[np.ndarray, "rows columns ..."],
    coordinates: Float[np.ndarray, "height width 2"],
    interpolation: int = cv2.INTER_LINEAR,
) -> Shaped[np.ndarray, "height width ..."]:
    """The strip, black outside the picture."""
    return cv2.remap(picture, coordinates, None, interpolation)


def unwrap_mask(
    mask: Bool[np.ndarray, "rows columns"], coordinates: Float[np.ndarray, "height width 2"]
) -> Bool[np.ndarray, "height width"]:
    """Strip pixels whose whole neighbourhood lies inside the mask."""
    strip = cv2.remap(mask.view(np.uint8) * 255, coordinates, None, cv2.INTER_LINEAR)
    return strip > 254


def pad_round(
    strip: Shaped[np.ndarray, "height width ..."], pad: int = PAD
) -> Shaped[np.ndarray, "height padded ..."]:
    """The strip with `pad` columns of its other end on either side, because the angle is periodic."""
    return np.concatenate([strip[:, -pad:], strip, strip[:, :pad]], axis=1)
