"""How the wall coordinates of a pixel change with the pose of the camera: the exact derivatives of
`Geometry.to_wall`.

In `cylinder` mode the ray (x, y, z) turned by pan and tilt meets the wall at (a + k x, b + k y), a point of
the unit circle. That constraint gives dk, and with it the angle and the depth:
N dk = -[X (da + k dx) + Y (db + k dy)], N = X x + Y y, dtheta = X dY - Y dX, dz = z dk + k dz.
"""

import numpy as np
from jaxtyping import Float

from fewer.stitch.unfold.geometry import Geometry


def wall_and_slope(
    geometry: Geometry, xy: Float[np.ndarray, "points 2"], pose: Float[np.ndarray, "points 4"]
) -> tuple[Float[np.ndarray, "points 2"], Float[np.ndarray, "points 2 4"]]:
    """(angle, depth) of each pixel, as `to_wall` gives them, and their derivatives by a, b, pan and tilt."""
    if geometry.mode != "cylinder":
        return geometry.to_wall(xy, pose), _flat_slope(geometry, xy, pose)
    a, b, pan, tilt = np.moveaxis(pose, -1, 0)
    x0, y0, z0 = geometry.rays(xy)
    sin_tilt, cos_tilt, sin_pan, cos_pan = np.sin(tilt), np.cos(tilt), np.sin(pan), np.cos(pan)
    y, z1 = cos_tilt * y0 - sin_tilt * z0, sin_tilt * y0 + cos_tilt * z0
    x, z = cos_pan * x0 + sin_pan * z1, cos_pan * z1 - sin_pan * x0
    across = np.maximum(x * x + y * y, 1e-9)
    dot = a * x + b * y
    reach = (np.sqrt(np.maximum(dot**2 + across * (1 - a * a - b * b), 1e-12)) - dot) / across
    wall_x, wall_y = a + reach * x, b + reach * y
    facing = np.maximum(wall_x * x + wall_y * y, 1e-9)
    slope = np.empty((len(xy), 2, 4))
    # by pan: (dx, dy, dz) = (z, 0, -x); by tilt: (sin(pan) y, -z1, cos(pan) y)
    turns = ((z, 0.0, -x), (sin_pan * y, -z1, cos_pan * y))
    shifts = ((1.0, 0.0), (0.0, 1.0))
    for column, (move_x, move_y, move_z) in enumerate(
        [(*shift, 0.0) for shift in shifts] + [(reach * dx, reach * dy, reach * dz) for dx, dy, dz in turns]
    ):
        stretch = -(wall_x * move_x + wall_y * move_y) / facing
        slope[:, 0, column] = wall_x * (move_y + stretch * y) - wall_y * (move_x + stretch * x)
        slope[:, 1, column] = stretch * z + move_z
    return np.stack([np.arctan2(wall_y, wall_x), reach * z], axis=1), slope


def _flat_slope(geometry: Geometry, xy: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Without a camera the pose is only where the middle lies: a, b in units of the field's radius."""
    size = geometry.field_radius
    x, y = (np.asarray(xy, np.float64) - geometry.centre - size * pose[:, :2]).T
    radius = np.maximum(np.hypot(x, y), 1e-6)
    slope = np.zeros((len(xy), 2, 4))
    slope[:, 0, 0], slope[:, 0, 1] = size * y / radius**2, -size * x / radius**2
    per_radius = 1 / radius if geometry.mode == "linear" else size / radius**2
    slope[:, 1, 0], slope[:, 1, 1] = x * per_radius, y * per_radius
    return slope
