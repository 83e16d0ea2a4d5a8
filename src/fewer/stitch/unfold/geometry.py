"""The wall as a flat sheet: (angle, depth) of what a pixel shows, and back, given where the camera sits.

`cylinder`: a tube of radius one. The camera sits `a, b` beside the axis and looks along it, turned by `pan`
and `tilt`. Depth is measured ahead of the lens in tube radii, so that a step of the camera along the axis
and a
roll are exact translations of the sheet: that is why a chain of them stays rigid (in `linear` mode it would
stretch).

`linear` and `log` (the published unwrapping): no camera, only the centre of the lumen; depth is 1 - r /
r_out or ln(r_out / r). Their pose holds the centre as an offset from the field's centre in units of the
field's
radius.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fewer.stitch.options import UnwrapMode
from fewer.stitch.unfold.lens import Lens

TAU = 2 * math.pi
AHEAD = 2.5
_INNER = 10.0  # r_in of the reference code, pixels


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is the same for all frames of a sequence."""

    mode: UnwrapMode
    lens: Lens
    centre: tuple[float, float]
    field_radius: float
    depth: float

    def to_wall(
        self, xy: Float[np.ndarray, "points 2"], pose: Float[np.ndarray, "*rows 4"]
    ) -> Float[np.ndarray, "points 2"]:
        """Pixels -> (angle in radians, depth). `pose` is one row of four, or one row for each point."""
        a, b, pan, tilt = np.moveaxis(np.atleast_2d(pose), -1, 0)
        offset = np.asarray(xy, np.float64) - self.centre
        if self.mode != "cylinder":
            offset = offset - self.field_radius * np.stack([a, b], axis=-1)
            radius = np.maximum(np.hypot(offset[:, 0], offset[:, 1]), 1e-6) / self.field_radius
            depth = 1 - radius if self.mode == "linear" else -np.log(radius)
            return np.stack([np.arctan2(offset[:, 1], offset[:, 0]), depth], axis=1)
        x, y, z = self.rays(xy)
        # ray = Ry(pan) Rx(tilt) (x, y, z)
        y, z = np.cos(tilt) * y - np.sin(tilt) * z, np.sin(tilt) * y + np.cos(tilt) * z
        x, z = np.cos(pan) * x + np.sin(pan) * z, np.cos(pan) * z - np.sin(pan) * x
        across = np.maximum(x * x + y * y, 1e-9)
        dot = a * x + b * y
        reach = (np.sqrt(np.maximum(dot**2 + across * (1 - a * a - b * b), 1e-12)) - dot) / across
        return np.stack([np.arctan2(b + reach * y, a + reach * x), reach * z], axis=1)

    def rays(
        self, xy: Float[np.ndarray, "points 2"]
    ) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
        """Unit vectors in the camera's own axes (z ahead) along which pixels look; `cylinder` only."""
        x, y = (np.asarray(xy, np.float64) - self.centre).T
        radius = np.maximum(np.hypot(x, y), 1e-9)
        angle = self.lens.angle(radius)
        scale = np.sin(angle) / radius
        return x * scale, y * scale, np.cos(angle)

    def to_picture(
        self, wall: Float[np.ndarray, "points 2"], pose: Float[np.ndarray, "4"]
    ) -> Float[np.ndarray, "points 2"]:
        """(angle, depth) -> pixels. What lies behind the lens ends far outside the field."""
        a, b, pan, tilt = pose
        theta, depth = wall[:, 0], wall[:, 1]
        if self.mode != "cylinder":
            radius = self.field_radius * (1 - depth if self.mode == "linear" else np.exp(-depth))
            unit = np.stack([np.cos(theta), np.sin(theta)], axis=1)
            return np.array(self.centre) + self.field_radius * np.array([a, b]) + radius[:, None] * unit
        x, y, z = np.cos(theta) - a, np.sin(theta) - b, depth
        x, z = math.cos(pan) * x - math.sin(pan) * z, math.sin(pan) * x + math.cos(pan) * z
        y, z = math.cos(tilt) * y + math.sin(tilt) * z, math.cos(tilt) * z - math.sin(tilt) * y
        across = np.maximum(np.hypot(x, y), 1e-12)
        radius = self.lens.radius(np.arctan2(across, z)) / across
        return np.stack([self.centre[0] + radius * x, self.centre[1] + radius * y], axis=1)

    def axis_in_picture(self, pose: Float[np.ndarray, "frames 4"]) -> Float[np.ndarray, "frames 2"]:
        """Pixel at which the middle of the tube appears 2.5 radii ahead: what the lumen finder looks for."""
        a, b, pan, tilt = np.moveaxis(pose, -1, 0)
        x, y, z = -a, -b, np.full_like(a, AHEAD)
        x, z = np.cos(pan) * x - np.sin(pan) * z, np.sin(pan) * x + np.cos(pan) * z
        y, z = np.cos(tilt) * y + np.sin(tilt) * z, np.cos(tilt) * z - np.sin(tilt) * y
        across = np.maximum(np.hypot(x, y), 1e-12)
        radius = self.lens.radius(np.arctan2(across, z)) / across
        return np.stack([self.centre[0] + radius * x, self.centre[1] + radius * y], axis=-1)

    def near_depth(self) -> float:
        """Depth of the nearest wall a centred camera sees at the edge of the field."""
        if self.mode != "cylinder":
            return 0.0
        return 1 / math.tan(float(self.lens.angle(np.array([self.field_radius]))[0]))

    def far_depth(self) -> float:
        """Depth at which strips end."""
        ratio = _INNER / self.field_radius
        if self.mode == "cylinder":
            return self.depth
        return 1 - ratio if self.mode == "linear" else -math.log(ratio)

    def resolution(self, depth: Float[np.ndarray, "points"]) -> tuple[np.ndarray, np.ndarray]:
        """Picture pixels per unit of the sheet, along the angle and along the depth, for a centred camera."""
        if self.mode != "cylinder":
            radius = self.field_radius * (1 - depth if self.mode == "linear" else np.exp(-depth))
            along = np.full_like(radius, self.field_radius) if self.mode == "linear" else radius
            return np.maximum(radius, 1.0), np.maximum(along, 1.0)
        angle = np.arctan2(1.0, depth)
        return self.lens.radius(angle), self.lens.pixels_per_radian(angle) / (1 + depth**2)

    def pose_towards(self, xy: tuple[float, float]) -> Float[np.ndarray, "4"]:
        """First guess of a frame's pose from where its lumen appears: no offset, the axis points there."""
        x, y = xy[0] - self.centre[0], xy[1] - self.centre[1]
        if self.mode != "cylinder":
            return np.array([x / self.field_radius, y / self.field_radius, 0.0, 0.0])
        radius = max(math.hypot(x, y), 1e-9)
        angle = float(self.lens.angle(np.array([radius]))[0])
        across = math.sin(angle) / radius
        x, y, z = x * across, y * across, math.cos(angle)
        return np.array([0.0, 0.0, -math.asin(x), math.atan2(y, z)])
