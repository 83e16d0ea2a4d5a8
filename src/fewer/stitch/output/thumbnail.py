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
    masked = cv2.copyTo(picture, field.usable.view(np.uint8))
    radius = int(np.ceil(field.radius))
    left, top = (max(round(middle) - radius, -radius) for middle in field.centre)
    height, width = picture.shape[:2]
    inner = masked[max(top, 0) : top + 2 * radius, max(left, 0) : left + 2 * radius]
    above, before = max(-top, 0), max(-left, 0)
    below, after = max(top + 2 * radius - height, 0), max(left + 2 * radius - width, 0)
    square = cv2.copyMakeBorder(inner, above, below, before, after, cv2.BORDER_CONSTANT)
    small = cv2.resize(square, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 72])[1].tobytes()
    return Thumbnail(jpeg, float(left), float(top), float(2 * radius))
