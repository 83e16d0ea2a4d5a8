"""Small pictures of frames for the page: the field of view alone, nothing beside it."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from fewer.stitch.frames.field import Field

MOST = 200
_SIDE = 240


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """JPEG of the square (left, top, side) of the frame around its field."""

    jpeg: bytes
    left: float
    top: float
    side: float


def make_thumbnail(picture: UInt8[np.ndarray, "height width 3"], field: Field) -> Thumbnail:
    """Masked first, cropped second, so that burned-in text never gets in."""
    masked = picture * field.usable[..., None]
    radius = int(np.ceil(field.radius))
    padded = cv2.copyMakeBorder(masked, radius, radius, radius, radius, cv2.BORDER_CONSTANT)
    left, top = round(field.centre[0]) - radius, round(field.centre[1]) - radius
    left, top = max(left, -radius), max(top, -radius)
    square = padded[top + radius : top + 3 * radius, left + radius : left + 3 * radius]
    small = cv2.resize(square, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 72])[1].tobytes()
    return Thumbnail(jpeg, float(left), float(top), float(2 * radius))
