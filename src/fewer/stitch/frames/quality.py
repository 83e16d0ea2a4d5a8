"""Is a frame fit for use? Blur, blank, highlights and bubbles, duplicates; and the mask of what shines."""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from fewer.stitch.options import SelectOptions

Reason = Literal["blank", "bubbles", "blurred", "duplicate", "no lumen", "not matched", ""]
_SIDE = 256


def highlight_mask(picture: UInt8[np.ndarray, "height width 3"]) -> Bool[np.ndarray, "height width"]:
    """Specular highlights, bubbles and green navigation boxes, dilated by 9 pixels at 480 (less on small
    pictures).
    """
    blue, green, red = cv2.split(picture)
    low, high = cv2.min(cv2.min(blue, green), red), cv2.max(cv2.max(blue, green), red)
    # S < 0.15 and V > 0.85, without leaving 8 bit: low > 0.85 high
    pale = cv2.bitwise_and(
        cv2.compare(low, cv2.multiply(high, 0.85), cv2.CMP_GT), cv2.compare(high, 216, cv2.CMP_GT)
    )
    box = cv2.bitwise_and(
        cv2.compare(cv2.subtract(green, red), 60, cv2.CMP_GT),
        cv2.compare(cv2.subtract(green, blue), 40, cv2.CMP_GT),
    )
    shining = cv2.bitwise_or(cv2.bitwise_or(pale, box), cv2.compare(low, 200, cv2.CMP_GT))
    side = max(3, round(9 * min(picture.shape[:2]) / 480) | 1)
    return cv2.dilate(shining, np.ones((side, side), np.uint8)) > 0


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one frame inside the field."""

    sharpness: float
    mean: float
    spread: float
    highlight: float


def measure(
    picture: UInt8[np.ndarray, "height width 3"],
    usable: Bool[np.ndarray, "height width"],
    shining: Bool[np.ndarray, "height width"],
) -> Quality:
    """Figures at 256 pixels, away from highlights (their edges are always sharp).

    Sharpness is the energy of the second derivative divided by mean^2, along the direction in which it is
    least: a motion blur takes away one direction only, so the variance of the Laplacian would keep more
    than a third.
    """
    scale = _SIDE / max(picture.shape[:2])
    size = (max(2, round(picture.shape[1] * scale)), max(2, round(picture.shape[0] * scale)))
    grey = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), size, interpolation=cv2.INTER_AREA)
    inside = cv2.erode(
        cv2.resize(usable.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST), np.ones((5, 5))
    )
    shine = cv2.resize(shining.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    area = max(int(inside.sum()), 1)
    clear = (inside > 0) & (cv2.dilate(shine, np.ones((3, 3))) == 0)
    if clear.sum() < 50:
        return Quality(0.0, float(grey[inside > 0].mean()) if area > 1 else 0.0, 0.0, 1.0)
    values = grey[clear].astype(np.float64)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.0).astype(np.float32)
    return Quality(
        sharpness=_least_directional_energy(smooth, clear) / max(values.mean(), 1.0) ** 2,
        mean=float(values.mean()),
        spread=float(values.std()),
        highlight=float((shine & inside).sum() / area),  # pyright: ignore
    )


def _least_directional_energy(grey: np.ndarray, clear: np.ndarray) -> float:
    """min over angles of the mean of (c^2 I_xx + 2 c s I_xy + s^2 I_yy)^2."""
    parts = np.stack(
        [cv2.Sobel(grey, cv2.CV_32F, *order, ksize=3)[clear] for order in ((2, 0), (1, 1), (0, 2))]
    )
    moments = (parts @ parts.T) / parts.shape[1]
    angles = np.arange(16) * np.pi / 16
    cos, sin = np.cos(angles), np.sin(angles)
    mix = np.stack([cos**2, 2 * cos * sin, sin**2], axis=1)
    return float(np.einsum("ak,kl,al->a", mix, moments, mix).min())


class FrameJudge:
    """Gives each frame its verdict, from its figures and those of the last two seconds."""

    def __init__(self, options: SelectOptions, memory: int = 21) -> None:
        self._options = options
        self._sharpness: deque[float] = deque(maxlen=memory)
        self._last: np.ndarray | None = None

    def verdict(self, quality: Quality, picture: UInt8[np.ndarray, "height width 3"]) -> Reason:
        """Empty when the frame is good. Order: blank, bubbles, blurred, duplicate."""
        if quality.mean < 12 or quality.mean > 235 or (quality.spread < 6 and quality.highlight < 0.5):
            return "blank"
        if quality.highlight > self._options.max_highlight:
            return "bubbles"
        usual = float(np.median(self._sharpness)) if self._sharpness else quality.sharpness
        self._sharpness.append(quality.sharpness)
        if quality.sharpness < self._options.sharpness * usual:
            return "blurred"
        small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).astype(np.int16)
        if self._last is not None and float(np.abs(small - self._last).mean()) < 0.3:
            # the frame that was kept stays the measure: else a slow camera would repeat itself for ever
            return "duplicate"
        self._last = small
        return ""
