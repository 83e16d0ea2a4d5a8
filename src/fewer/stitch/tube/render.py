"""Camera, light and faults of the rendered endoscope, and the six variants A-F of the benchmark.

The camera looks along +z (deeper) and is withdrawn towards -z. Its rotation is Ry(pan) Rx(tilt) Rz(roll).
The renderer is deterministic in (variant, seed) and renders any frame alone.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from fewer.core.errors import ConfigError
from fewer.stitch.tube.wall import Texture, TubeShape, intersect, paint_texture

HALF_ANGLE = math.radians(70)
FRAMES_PER_SECOND = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What makes one variant: shape of the wall, unsteadiness of the hand, faults of the picture."""

    folds: float = 0.0
    rings: float = 0.0
    breathing: float = 0.0
    curve: float = 0.0
    lateral: float = 0.0
    """Sideways motion, mm."""
    tilt_degrees: float = 0.0
    roll_step: float = 0.0
    """Roll drift, degrees a frame."""
    walk: float = 0.0
    """Random part of the withdrawal, mm a frame (standard deviation)."""
    noise: float = 0.0
    highlights: float = 0.0
    """Share of the film that shines."""
    blur: bool = False
    """Every 11th frame is motion-blurred over 15 pixels."""
    pinhole: bool = False
    burst: bool = False
    """Six frames of bubbles in the middle, after which the camera is 30 mm further."""
    returns: bool = False
    """The second half goes back in."""


_UNSTEADY = Recipe(
    folds=0.02, lateral=1.2, tilt_degrees=4.0, roll_step=0.35, walk=0.12, noise=2.0, highlights=0.05
)
RECIPES: dict[str, Recipe] = {
    "A": Recipe(),
    "B": _UNSTEADY,
    "C": Recipe(
        folds=0.05,
        rings=0.02,
        breathing=0.04,
        curve=2.0,
        lateral=2.0,
        tilt_degrees=7.0,
        roll_step=0.5,
        walk=0.12,
        noise=3.0,
        highlights=0.08,
        blur=True,
    ),
    "D": replace(_UNSTEADY, pinhole=True),
    "E": replace(_UNSTEADY, burst=True),
    "F": replace(_UNSTEADY, returns=True),
}


@dataclass(frozen=True, slots=True)
class CameraPose:
    """Origin in mm and rotation (columns: the camera's axes in space) at time t in seconds."""

    origin: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    t: float


class Tube:
    """One rendered sequence with its ground truth.

    `frame(i)` renders; `locate(i, xy)` leads from pixels to the wall, `project(i, theta, z)` back.
    """

    def __init__(self, variant: str, *, seed: int = 0, frames: int = 60, size: int = 480) -> None:
        if variant not in RECIPES:
            raise ConfigError(f"tube variant {variant!r} is not known; choose from {', '.join(RECIPES)}")
        if frames < 2 or size < 64:
            raise ConfigError(f"a tube needs at least 2 frames of 64 pixels; got {frames} of {size}")
        self.variant, self.seed, self.frames, self.size = variant, seed, frames, size
        self.recipe = recipe = RECIPES[variant]
        random = np.random.default_rng([seed, 0])
        self.shape = TubeShape(
            folds=recipe.folds, rings=recipe.rings, breathing=recipe.breathing, curve=recipe.curve,
            phases=tuple(random.uniform(0, 2 * math.pi, 5)),
        )  # fmt: skip
        self.field_radius = 232.0 * size / 480
        self.centre = (size - 1) / 2
        self._poses = self._path(random)
        depths = [pose.origin[2] for pose in self._poses]
        self._z_range = (min(depths) - 2, max(depths) + 70)

    @cached_property
    def texture(self) -> Texture:
        """The true lining."""
        low, high = self._z_range
        return paint_texture(high - low, low, self.seed)

    @property
    def focal(self) -> float:
        """Pixels per radian (equidistant) or pixels (pinhole): 70 degrees lie at the edge of the field."""
        return self.field_radius / (math.tan(HALF_ANGLE) if self.recipe.pinhole else HALF_ANGLE)

    def pose(self, index: int) -> CameraPose:
        """Where the camera is at frame `index`."""
        return self._poses[index]

    def is_blurred(self, index: int) -> bool:
        """Whether the frame is one of those spoiled by motion blur (variant C)."""
        return self.recipe.blur and index % 11 == 10

    def is_burst(self, index: int) -> bool:
        """Whether the frame shows bubbles (variant E)."""
        middle = self.frames // 2
        return self.recipe.burst and middle - 3 <= index < middle + 3

    def frame(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        """The picture, BGR, black outside the round field."""
        rows, columns = np.nonzero(self._field)
        xy = np.stack([columns, rows], axis=1).astype(np.float64)
        pose = self._poses[index]
        hit = intersect(self.shape, pose.origin, self._rays(xy) @ pose.rotation.T, pose.t)
        colour = self.texture.sample(hit.theta, hit.z)
        light = hit.cosine**0.6 / (1 + (hit.distance / 9.0) ** 2)
        light = np.minimum(light / np.percentile(light, 92), 1.35) * (1 + 0.08 * math.sin(index / 7))
        picture = np.zeros((self.size, self.size, 3))
        picture[rows, columns] = colour * light[:, None]
        return self._faults(picture, index, light_map=_scatter(light, rows, columns, self.size))

    def locate(self, index: int, xy: Float[np.ndarray, "points 2"]) -> tuple[np.ndarray, np.ndarray]:
        """Angle and depth (mm) of the wall seen at pixels of a frame."""
        pose = self._poses[index]
        hit = intersect(self.shape, pose.origin, self._rays(xy) @ pose.rotation.T, pose.t)
        return hit.theta, hit.z

    def project(self, index: int, theta: np.ndarray, z: np.ndarray) -> Float[np.ndarray, "points 2"]:
        """Pixels at which a frame shows wall points; NaN where they lie outside the field."""
        pose = self._poses[index]
        local = (self.shape.point(theta, z, pose.t) - pose.origin) @ pose.rotation
        across = np.hypot(local[:, 0], local[:, 1])
        angle = np.arctan2(across, local[:, 2])
        inside = angle < HALF_ANGLE
        angle = np.where(inside, angle, 0)
        radius = self.focal * (np.tan(angle) if self.recipe.pinhole else angle)
        unit = local[:, :2] / np.maximum(across, 1e-12)[:, None]
        return np.where(inside[:, None], self.centre + radius[:, None] * unit, np.nan)

    @cached_property
    def _field(self) -> np.ndarray:
        rows, columns = np.indices((self.size, self.size))
        return np.hypot(rows - self.centre, columns - self.centre) <= self.field_radius

    def _rays(self, xy: np.ndarray) -> np.ndarray:
        offset = np.asarray(xy, np.float64) - self.centre
        radius = np.maximum(np.hypot(offset[:, 0], offset[:, 1]), 1e-9)
        angle = np.arctan(radius / self.focal) if self.recipe.pinhole else radius / self.focal
        across = np.sin(angle) / radius
        return np.stack([offset[:, 0] * across, offset[:, 1] * across, np.cos(angle)], axis=1)

    def _path(self, random: np.random.Generator) -> list[CameraPose]:
        recipe = self.recipe
        waves = random.uniform(0.2, 1.1, (4, 2)), random.uniform(0, 2 * math.pi, (4, 2))
        step = random.uniform(0.8, 1.0)
        z, roll, poses = 0.0, random.uniform(0, 2 * math.pi), []
        for index in range(self.frames):
            t = index / FRAMES_PER_SECOND
            swing = np.mean(np.sin(2 * math.pi * waves[0] * t + waves[1]), axis=1)
            shift = recipe.lateral * swing[:2]
            tilt, pan = math.radians(recipe.tilt_degrees) * swing[2:]
            axis_x, axis_y, slope_x, slope_y = self.shape.axis(z)
            origin = np.array([axis_x + shift[0], axis_y + shift[1], z])
            # the hand follows the tube: its curve turns the camera, tilt and pan come on top
            rotation = (
                _about_y(pan + math.atan(slope_x)) @ _about_x(tilt - math.atan(slope_y)) @ _about_z(roll)
            )
            poses.append(CameraPose(origin, rotation, t))
            back = recipe.returns and index >= self.frames // 2
            z += (step if back else -step) + random.normal(0, 1) * recipe.walk
            roll += math.radians(recipe.roll_step)
            if recipe.burst and index == self.frames // 2:
                z -= 30.0
        return poses

    def _faults(self, picture: np.ndarray, index: int, light_map: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        recipe = self.recipe
        random = np.random.default_rng([self.seed, 2, index])
        if recipe.highlights:
            shine = self._film * np.clip(light_map - 0.35, 0, 1)
            picture = picture + 400 * cv2.GaussianBlur(shine, (0, 0), 1.2)[..., None]
        if self.is_burst(index):
            picture = _bubbles(random, picture)
        if self.is_blurred(index):
            picture = _motion_blur(picture, 15.0 * self.size / 480, random.uniform(0, math.pi))
        if recipe.noise:
            spread = recipe.noise * np.sqrt(np.maximum(picture, 0) / 128) + 1
            picture = picture + random.normal(0, 1, picture.shape) * spread
        picture = np.clip(np.round(picture), 0, 255).astype(np.uint8)
        picture[~self._field] = 0
        return picture

    @cached_property
    def _film(self) -> np.ndarray:
        """Where the wet surface shines: fixed to the screen, so a matcher must not follow it."""
        random = np.random.default_rng([self.seed, 3])
        noise = cv2.GaussianBlur(random.normal(0, 1, (self.size, self.size)), (0, 0), 5.0 * self.size / 480)
        edge = np.quantile(noise, 1 - self.recipe.highlights)
        return np.clip((noise - edge) / (noise.std() * 0.3), 0, 1)


def _scatter(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    out = np.zeros((size, size))
    out[rows, columns] = values
    return out


def _bubbles(random: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Foam: bright discs with rims over two thirds of the picture."""
    size = picture.shape[0]
    foam = picture.copy()
    for _ in range(220):
        centre = (int(random.uniform(0, size)), int(random.uniform(0, size)))
        radius = int(random.uniform(0.02, 0.07) * size)
        cv2.circle(foam, centre, radius, (225, 235, 240), -1, cv2.LINE_AA)
        cv2.circle(foam, centre, radius, (255, 255, 255), 2, cv2.LINE_AA)
    return foam


def _motion_blur(picture: np.ndarray, length: float, angle: float) -> np.ndarray:
    side = 2 * math.ceil(length / 2) + 1
    kernel = np.zeros((side, side), np.float32)
    middle = side // 2
    reach = np.array([math.cos(angle), math.sin(angle)]) * length / 2
    ends = [tuple(np.round((middle + sign * reach) * 16).astype(int).tolist()) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_AA, shift=4)
    return cv2.filter2D(picture, -1, kernel / kernel.sum())


def _about_x(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def _about_y(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _about_z(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
