"""Exposure: the fall of light with distance and the camera's automatic gain, estimated from the strips
themselves.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.strip import StripShape

SAMPLES = 48
_FLOOR = 4.0
_TABLE = 512


@dataclass(frozen=True, slots=True)
class Exposure:
    """log brightness against distance for the sequence, and one log gain a frame, per channel."""

    distance: Float[np.ndarray, "samples"]
    profile: Float[np.ndarray, "samples 3"]
    gain: Float[np.ndarray, "frames 3"]

    def factor(
        self, frame: int, distance: Float[np.ndarray, "height width"]
    ) -> Float[np.ndarray, "height width 3"]:
        """What to multiply a frame's strip by, so that all of it is as bright as the sequence's near wall."""
        place = np.clip((distance - self.distance[0]) / self._reach * (_TABLE - 1), 0, _TABLE - 1)
        return cv2.merge([np.take(table, place.astype(np.intp)) for table in self.tables(frame)])

    def tables(self, frame: int) -> Float[np.ndarray, "3 entries"]:
        """The factor of each channel at 512 distances: interpolating every pixel would cost more than the
        remap.
        """
        reference = self.profile[: SAMPLES // 4].mean(axis=0)
        fine = np.linspace(self.distance[0], self.distance[-1], _TABLE)
        curves = [np.interp(fine, self.distance, self.profile[:, channel]) for channel in range(3)]
        logs = reference[:, None] - np.stack(curves) - self.gain[frame][:, None]
        return np.exp(np.clip(logs, -2, 2)).astype(np.float32)

    @property
    def _reach(self) -> float:
        return float(self.distance[-1] - self.distance[0])


def brightness_profile(
    strip: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, "samples 3"]:
    """Log of the mean brightness of `SAMPLES` row bands of a strip; NaN where the band is hardly seen."""
    seen = mask[:, ::4].astype(np.float32)
    sums = (strip[:, ::4].astype(np.float32) * seen[..., None]).sum(axis=1)
    return profile_of_rows(np.add.reduce(seen, axis=1), sums, seen.shape[1])


def profile_of_rows(
    rows: Float[np.ndarray, "height"], sums: Float[np.ndarray, "height 3"], columns: int
) -> Float[np.ndarray, "samples 3"]:
    """The same, from how many of some `columns` are seen in each row and the sums of what they show."""
    edges = np.linspace(0, len(rows), SAMPLES + 1).astype(int)
    count = np.add.reduceat(rows, edges[:-1])
    total = np.add.reduceat(sums, edges[:-1], axis=0)
    wanted = 0.15 * np.diff(edges) * columns
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((count > wanted)[:, None], np.log(total / count[:, None] + _FLOOR), np.nan)


def fit_exposure(
    profiles: Float[np.ndarray, "frames samples 3"], geometry: Geometry, shape: StripShape
) -> Exposure:
    """Medians in turn over frames and over rows, three rounds."""
    profiles = np.asarray(profiles, np.float64)
    gain = np.zeros((len(profiles), 3))
    profile = np.zeros((SAMPLES, 3))
    seen = np.isfinite(profiles).any(axis=(0, 2))
    for _ in range(3):
        profile = _nan_median(profiles - gain[:, None], 0)
        gain = _nan_median(profiles - profile[None], 1)
        gain -= np.median(gain, axis=0)
    if seen.any():
        places = np.arange(SAMPLES)
        for channel in range(3):
            profile[:, channel] = np.interp(places, places[seen], profile[seen, channel])
    kernel = np.array([1, 2, 3, 2, 1]) / 9
    padded = np.pad(profile, ((2, 2), (0, 0)), mode="edge")
    profile = np.stack([np.convolve(padded[:, channel], kernel, "valid") for channel in range(3)], axis=1)
    depth = shape.first_depth + (np.arange(SAMPLES) + 0.5) * shape.height / SAMPLES / shape.scale
    # the first pass looks through centred poses: depth and distance name each other
    distance = np.hypot(1.0, depth) if geometry.mode == "cylinder" else depth
    return Exposure(distance, profile, gain)


def wall_distance(
    geometry: Geometry,
    depth: Float[np.ndarray, "height"],
    theta: Float[np.ndarray, "width"],
    pose: np.ndarray,
) -> Float[np.ndarray, "height width"]:
    """Distance from the lens to the wall in tube radii (depth itself when there is no camera model)."""
    if geometry.mode != "cylinder":
        return np.repeat(depth[:, None], len(theta), axis=1)
    across = (np.cos(theta) - pose[0]) ** 2 + (np.sin(theta) - pose[1]) ** 2
    return np.sqrt(np.add.outer((depth**2).astype(np.float32), across.astype(np.float32)))


def _nan_median(values: np.ndarray, axis: int) -> np.ndarray:
    """Median over the finite values, 0 where there are none (without numpy's warning)."""
    empty = ~np.isfinite(values).any(axis=axis, keepdims=True)
    return np.nanmedian(np.where(empty, 0.0, values), axis=axis)
