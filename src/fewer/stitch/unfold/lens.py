"""Lens models: how the angle of a ray to the optical axis becomes a distance from the centre of the
picture.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fewer.core.errors import ConfigError
from fewer.stitch.options import LensModel, UnfoldOptions


@dataclass(frozen=True, slots=True)
class Lens:
    """`focal` in pixels; `coefficients` are Kannala-Brandt's k1..k4 (rho = f (a + k1 a^3 + k2 a^5 + ...))."""

    model: LensModel
    focal: float
    coefficients: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def radius(self, angle: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Angle in radians -> distance in pixels. A pinhole sees less than 90 degrees."""
        if self.model == "pinhole":
            return self.focal * np.tan(np.minimum(angle, 1.55))
        return self.focal * self._bend(angle)

    def angle(self, radius: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Distance in pixels -> angle in radians."""
        if self.model == "pinhole":
            return np.arctan(radius / self.focal)
        angle = radius / self.focal
        if self.model == "kannala-brandt":
            for _ in range(8):  # Newton
                angle = angle - (self._bend(angle) - radius / self.focal) / self._slope(angle)
        return angle

    def pixels_per_radian(self, angle: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """d radius / d angle."""
        if self.model == "pinhole":
            return self.focal / np.cos(np.minimum(angle, 1.55)) ** 2
        return self.focal * self._slope(angle)

    def _bend(self, angle: np.ndarray) -> np.ndarray:
        if self.model != "kannala-brandt":
            return angle
        k1, k2, k3, k4 = self.coefficients
        square = angle**2
        return angle * (1 + square * (k1 + square * (k2 + square * (k3 + square * k4))))

    def _slope(self, angle: np.ndarray) -> np.ndarray:
        if self.model != "kannala-brandt":
            return np.ones_like(angle)
        k1, k2, k3, k4 = self.coefficients
        square = angle**2
        return 1 + square * (3 * k1 + square * (5 * k2 + square * (7 * k3 + square * 9 * k4)))


def make_lens(options: UnfoldOptions, field_radius: float, focal: float | None = None) -> Lens:
    """Lens whose field of view ends at `field_radius` pixels, or one of a known focal length."""
    half = math.radians(options.field_of_view / 2)
    if options.lens == "pinhole" and half > math.radians(85):
        raise ConfigError(
            f"a pinhole lens cannot see {options.field_of_view:g} degrees; allowed is up to 170, "
            "try lens equidistant"
        )
    shape = Lens(options.lens, 1.0, options.kannala_brandt)
    angles = np.linspace(0, half, 500)
    falls = shape.pixels_per_radian(angles) <= 0
    if falls.any():
        falling = math.degrees(float(angles[falls][0]))
        raise ConfigError(
            f"with kannala_brandt {options.kannala_brandt} the radius falls from {falling:.0f} degrees on: "
            f"a pixel would show two places; check k1..k4, or give a field_of_view below {2 * falling:.0f}"
        )
    return Lens(
        options.lens, focal or field_radius / float(shape.radius(np.array([half]))[0]), options.kannala_brandt
    )
