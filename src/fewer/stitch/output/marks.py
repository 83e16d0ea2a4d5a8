"""Depth marks: at this time the scope stood at that many centimetres."""

import re
from dataclasses import dataclass

import numpy as np

from fewer.core.errors import ConfigError
from fewer.stitch.panorama import SegmentMap


@dataclass(frozen=True, slots=True)
class DepthScale:
    """Centimetres from the incisors at row 0 of the map, and their change a row."""

    top_cm: float
    cm_per_row: float


def parse_mark(text: str) -> tuple[float, float]:
    """`00:12.3=35cm`, `12.3=35` -> (seconds, centimetres). Raises ConfigError."""
    match = re.fullmatch(
        r"(?:(\d{1,4}):)?(\d{1,6}(?:\.\d{1,6})?)=(\d{1,4}(?:\.\d{1,4})?)(?:cm)?", text.strip()
    )
    if match is None:
        raise ConfigError(f"--mark {text!r} is not understood; write TIME=DEPTH such as 00:12.3=35cm")
    minutes, seconds, centimetres = match.groups()
    return 60 * int(minutes or 0) + float(seconds), float(centimetres)


def parse_marks(texts: tuple[str, ...]) -> list[tuple[float, float]]:
    """All marks. One alone gives no scale, so ConfigError; none is fine."""
    parsed = [parse_mark(text) for text in texts]
    if len({seconds for seconds, _ in parsed}) == 1:
        raise ConfigError(
            f"--mark {texts[0]!r} alone gives no scale; give the depth at two different times, "
            "such as --mark 00:02=38cm 00:14.5=25cm"
        )
    return parsed


def depth_scale(marks: tuple[str, ...], segment: SegmentMap) -> DepthScale | None:
    """Straight line through the marks that fall into the segment; None with fewer than two. Raises
    ConfigError.
    """
    parsed = [parse_mark(mark) for mark in marks]
    times = np.array(segment.seconds)
    inside = [(second, depth) for second, depth in parsed if times[0] - 0.5 <= second <= times[-1] + 0.5]
    if len(inside) < 2:
        return None
    scale = segment.image.shape[1] / (2 * np.pi)
    # the lens itself stands at depth 0 of its strip
    rows = np.interp([second for second, _ in inside], times, (segment.poses[:, 5] - segment.top) * scale)
    if np.ptp(rows) < 1:
        return None
    slope, start = np.polyfit(rows, [depth for _, depth in inside], 1)
    return DepthScale(float(start), float(slope))
