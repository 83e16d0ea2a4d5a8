"""Where the frames of a segment lie on its map."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from fewer.stitch.options import BlendOptions
from fewer.stitch.unfold.geometry import TAU, Geometry
from fewer.stitch.unfold.strip import StripShape


@dataclass(frozen=True)
class Layout:
    """Row 0 is the nearest depth any frame saw; columns go once round."""

    geometry: Geometry
    poses: Float[np.ndarray, "frames 6"]
    width: int
    options: BlendOptions

    @property
    def scale(self) -> float:
        """Pixels a tube radius."""
        return self.width / TAU

    @cached_property
    def band(self) -> tuple[float, float]:
        """The depths ahead of the lens that are blended."""
        first = self.geometry.near_depth() * 0.6
        return first, min(self.geometry.far_depth(), self.geometry.near_depth() + self.options.near)

    @cached_property
    def top(self) -> float:
        """Depth of row 0."""
        return float(self.poses[:, 5].min() + self.band[0])

    @cached_property
    def height(self) -> int:
        return max(1, int(np.ceil((self.poses[:, 5].max() + self.band[1] - self.top) * self.scale)) + 1)

    @property
    def bands(self) -> int:
        """How many bands of detail a strip is split into."""
        return self.options.bands if self.options.blend == "multiband" else 1

    @property
    def powers(self) -> list[int]:
        """Of the weights, finest band first: 6 nearly takes the best frame, 1 averages. Noise is fine detail
        too, so not higher.
        """
        return [1] if self.bands == 1 else [6] + [2] * (self.bands - 2) + [1]

    @property
    def bytes_laid(self) -> int:
        """What one prepared frame takes."""
        rows = int((self.band[1] - self.band[0]) * self.scale) + 1
        return rows * self.width * (16 * self.bands + 12)

    @property
    def bytes_held(self) -> int:
        """What the map takes while it is made: in each band blue, green, red and their weight, the best
        weight, a frame and a place.
        """
        return self.height * self.width * (self.bands * 16 + 16)

    def area(self, place: int) -> slice:
        """Rows of the `place`-th frame."""
        start = int(np.floor((self.poses[place, 5] + self.band[0] - self.top) * self.scale))
        rows = min(self.height - start, int((self.band[1] - self.band[0]) * self.scale))
        return slice(start, start + rows)

    def shape(self, place: int) -> StripShape:
        """Those rows as a strip of this frame."""
        area = self.area(place)
        first_depth = self.top + area.start / self.scale - self.poses[place, 5]
        return StripShape(self.width, area.stop - area.start, first_depth)
