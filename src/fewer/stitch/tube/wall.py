"""The wall of the rendered tube: its shape, how a ray meets it, and the texture painted on it.

Millimetres throughout. The axis runs along z; a wall point is named by its angle theta and its depth z:
P(theta, z, t) = (a_x(z) + r cos(theta), a_y(z) + r sin(theta), z).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

PIXELS_PER_MM = 16.0
_TAU = 2 * math.pi


@dataclass(frozen=True, slots=True, kw_only=True)
class TubeShape:
    """Radius 10 mm, with folds, rings, breathing and a curved axis, each zero for a plain cylinder."""

    radius: float = 10.0
    folds: float = 0.0
    """Relative height of lengthwise folds (up to 0.05)."""
    rings: float = 0.0
    """Relative height of rings, one every 7 mm (up to 0.02)."""
    breathing: float = 0.0
    """Relative change of the radius in time (up to 0.04)."""
    breathing_hz: float = 0.25
    curve: float = 0.0
    """How far the axis swings sideways, in mm."""
    phases: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def wall_radius(self, theta: np.ndarray, z: np.ndarray, t: float) -> tuple[np.ndarray, ...]:
        """r and its derivatives along theta and z (all in mm)."""
        fold_phase, lobe_phase, ring_phase, _, _ = self.phases
        wide, narrow = 4 * theta + fold_phase + 0.03 * z, 7 * theta + lobe_phase
        fold = 1 + self.folds * (np.cos(wide) + 0.6 * np.cos(narrow))
        fold_theta = -self.folds * (4 * np.sin(wide) + 4.2 * np.sin(narrow))
        fold_z = -self.folds * 0.03 * np.sin(wide)
        ring_angle = _TAU * z / 7 + ring_phase
        ring = 1 + self.rings * np.cos(ring_angle)
        ring_z = -self.rings * _TAU / 7 * np.sin(ring_angle)
        breath_angle = _TAU * self.breathing_hz * t + _TAU * z / 60
        breath = 1 + self.breathing * np.sin(breath_angle)
        breath_z = self.breathing * _TAU / 60 * np.cos(breath_angle)
        radius = self.radius * fold * ring * breath
        along_z = self.radius * (fold_z * ring * breath + fold * ring_z * breath + fold * ring * breath_z)
        return radius, self.radius * fold_theta * ring * breath, along_z

    def axis(self, z: np.ndarray | float) -> tuple[np.ndarray | np.floating, ...]:
        """Centre of the tube at depth z and its slope: a_x, a_y, da_x/dz, da_y/dz."""
        z = np.asarray(z, np.float64)
        first, second = _TAU * z / 90 + self.phases[3], _TAU * z / 120 + self.phases[4]
        return (
            self.curve * np.sin(first),
            self.curve * np.sin(second),
            self.curve * _TAU / 90 * np.cos(first),
            self.curve * _TAU / 120 * np.cos(second),
        )

    def point(self, theta: np.ndarray, z: np.ndarray, t: float) -> Float[np.ndarray, "points 3"]:
        """Wall point in space."""
        radius = self.wall_radius(theta, z, t)[0]
        axis_x, axis_y, _, _ = self.axis(z)
        return np.stack([axis_x + radius * np.cos(theta), axis_y + radius * np.sin(theta), z], axis=-1)


@dataclass(frozen=True, slots=True)
class Hit:
    """Where rays meet the wall: angle, depth (mm), distance (mm) and cosine of incidence."""

    theta: np.ndarray
    z: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray


def intersect(
    shape: TubeShape, origin: Float[np.ndarray, "3"], directions: Float[np.ndarray, "points 3"], t: float
) -> Hit:
    """Ray-surface Newton, 8 steps, started from the straight cylinder around the axis at the camera."""
    axis_x, axis_y, _, _ = shape.axis(origin[2])
    x0, y0, z0 = origin[0] - axis_x, origin[1] - axis_y, origin[2]
    dx, dy, dz = directions.T
    across = np.maximum(dx * dx + dy * dy, 1e-9)
    dot = x0 * dx + y0 * dy
    distance = (-dot + np.sqrt(np.maximum(dot**2 + across * (shape.radius**2 - x0**2 - y0**2), 0))) / across
    distance = np.minimum(distance, 200.0)
    plain = shape.folds == shape.rings == shape.breathing == shape.curve == 0
    for step in range(1 if plain else 9):
        z = z0 + distance * dz
        axis_x, axis_y, slope_x, slope_y = shape.axis(z)
        x, y = origin[0] + distance * dx - axis_x, origin[1] + distance * dy - axis_y
        rho = np.maximum(np.hypot(x, y), 1e-9)
        theta = np.arctan2(y, x)
        radius, by_theta, by_z = shape.wall_radius(theta, z, t)
        along_x, along_y = dx - slope_x * dz, dy - slope_y * dz
        rho_rate = (x * along_x + y * along_y) / rho
        theta_rate = (x * along_y - y * along_x) / rho**2
        slope = rho_rate - by_theta * theta_rate - by_z * dz
        if not plain and step < 8:
            slope = np.where(np.abs(slope) < 0.02, 0.02, slope)
            distance = np.clip(distance - np.clip((rho - radius) / slope, -8, 8), 0.05, 200.0)
    # gradient of rho - r(theta, z): unit radial, -r_theta/rho along theta, -r_z along z
    steepness = np.sqrt(1 + (by_theta / rho) ** 2 + by_z**2)  # pyright: ignore
    return Hit(theta, z, distance, np.clip(slope / steepness, 0.02, 1.0))


@dataclass(frozen=True, slots=True)
class Texture:
    """The unrolled wall, BGR, 16 pixels a millimetre; columns go once round, row 0 is depth `z_start`."""

    picture: UInt8[np.ndarray, "height width 3"]
    z_start: float

    def sample(self, theta: np.ndarray, z: np.ndarray) -> Float[np.ndarray, "points 3"]:
        """Colour of wall points, bilinear, periodic in theta."""
        width = self.picture.shape[1]
        padded = np.concatenate([self.picture, self.picture[:, :2]], axis=1)
        columns = np.mod(theta / _TAU, 1.0) * width
        rows = (z - self.z_start) * PIXELS_PER_MM
        side = 1 << 14  # cv2.remap takes maps with sides below 32768
        fill = -len(columns) % side
        map_x = np.pad(columns, (0, fill)).astype(np.float32).reshape(-1, side)
        map_y = np.pad(rows, (0, fill)).astype(np.float32).reshape(-1, side)
        out = cv2.remap(padded, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return out.reshape(-1, 3)[: len(columns)].astype(np.float64)


def paint_texture(length: float, z_start: float, seed: int, radius: float = 10.0) -> Texture:
    """Pale mucosa with noise of four sizes, branching vessels, white dots and a z-line at 72 % of the
    length.
    """
    random = np.random.default_rng([seed, 1])
    width, height = round(_TAU * radius * PIXELS_PER_MM), round(length * PIXELS_PER_MM)
    noise = sum(
        weight * _value_noise(random, cells, width, height)
        for cells, weight in ((8, 10.0), (24, 9.0), (80, 9.0), (220, 8.0))
    )
    picture = np.array([150, 160, 215], np.float32) + noise[..., None] * np.array([1.0, 1.0, 0.8], np.float32)
    vessels = np.zeros((height, width), np.uint8)
    for _ in range(max(1, int(1.1 * length))):
        _grow_vessel(random, vessels, random.uniform(0, width), random.uniform(0, height), 4.5, 0)
    vessels = cv2.GaussianBlur(vessels, (0, 0), 0.8).astype(np.float32)[..., None] / 255
    picture = picture * (1 - vessels * np.array([0.42, 0.40, 0.16], np.float32))
    dots = np.zeros((height, width), np.uint8)
    for _ in range(int(0.6 * length)):
        centre = (int(random.uniform(0, width)), int(random.uniform(0, height)))
        cv2.circle(dots, centre, int(random.uniform(2, 6)), 255, -1, cv2.LINE_AA)
    dots = cv2.GaussianBlur(dots, (0, 0), 1.0).astype(np.float32)[..., None] / 255
    picture = picture * (1 - 0.6 * dots) + 0.6 * dots * np.array([225, 235, 240], np.float32)
    return Texture(np.clip(_z_line(random, picture), 0, 255).astype(np.uint8), z_start)


def _value_noise(random: np.random.Generator, cells: int, width: int, height: int) -> np.ndarray:
    """Smooth noise in [-1, 1], `cells` of them once round, periodic along the columns."""
    rows = max(2, round(cells * height / width))
    grid = random.uniform(-1, 1, (rows, cells)).astype(np.float32)
    padded = np.concatenate([grid[:, -2:], grid, grid[:, :2]], axis=1)
    scaled = cv2.resize(padded, (round(width * (cells + 4) / cells), height), interpolation=cv2.INTER_CUBIC)
    start = round(2 * width / cells)
    return scaled[:, start : start + width]


def _grow_vessel(
    random: np.random.Generator, canvas: np.ndarray, x: float, y: float, thickness: float, depth: int
) -> None:
    """A random walk that turns slowly, thins out and branches; drawn three times, so that it is periodic."""
    width = canvas.shape[1]
    angle = random.uniform(0, _TAU)
    points = [(x, y)]
    for step in range(int(random.uniform(15, 45))):
        angle += random.normal(0, 0.3)
        x, y = x + 7 * math.cos(angle), y + 7 * math.sin(angle)
        points.append((x, y))
        if depth < 2 and step > 4 and random.uniform() < 0.06:
            _grow_vessel(random, canvas, x, y, thickness * 0.65, depth + 1)
    line = np.array(points)
    for shift in (-width, 0, width):
        moved = np.round((line + np.array([shift, 0])) * 8).astype(np.int32)
        cv2.polylines(canvas, [moved], False, 255, max(1, round(thickness)), cv2.LINE_AA, shift=3)


def _z_line(random: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Beyond a wavy line at 72 % of the length the lining is redder."""
    height, width = picture.shape[:2]
    theta = np.arange(width) * _TAU / width
    line = np.full(width, 0.72 * height)
    for harmonic, size in ((1, 3.0), (2, 2.0), (3, 1.5), (5, 1.0), (9, 0.6)):
        line += (
            size * PIXELS_PER_MM * random.uniform(0.3, 1) * np.cos(harmonic * theta + random.uniform(0, _TAU))
        )
    beyond = 1 / (1 + np.exp(-(np.arange(height)[:, None] - line[None]) / 3.0))
    tint = np.array([0.62, 0.62, 0.93], np.float32)
    return picture * (1 - beyond[..., None] * (1 - tint)).astype(np.float32)
