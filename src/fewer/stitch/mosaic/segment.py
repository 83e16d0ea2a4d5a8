"""What tracking builds: used frames, pairs of them, and segments of frames that hang together."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from fewer.stitch.match.features import StripView
from fewer.stitch.mosaic.store import Kept
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.strip import StripShape


@dataclass(frozen=True, slots=True)
class Pair:
    """Two used frames and where their matches are kept; `first` is the newer one. Indices are places in the
    segment. `edge` is where the matches are that the poses are found from, and their weights.
    """

    first: int
    second: int
    matches: Kept
    count: int
    shift: Float[np.ndarray, "2"]
    counts: dict[str, int]
    loop: bool = False
    edge: Kept | None = None


@dataclass(slots=True)
class TrackedFrame:
    """A used frame: its number, time and (height, width), its first pose, its view while it is still needed,
    and where that of a keyframe is kept.
    """

    index: int
    seconds: float
    size: tuple[int, int]
    pose: Float[np.ndarray, "4"]
    profile: Float[np.ndarray, "samples 3"]
    view: StripView | None
    keyframe: bool = False
    kept_view: Kept | None = None


@dataclass(slots=True)
class Segment:
    """Frames that hang together, with one geometry and the chain's roll and axial place of each."""

    geometry: Geometry
    shape: StripShape
    frames: list[TrackedFrame] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    chain: list[np.ndarray] = field(default_factory=list)

    def first_poses(self) -> Float[np.ndarray, "frames 6"]:
        """Where the chain of pair displacements puts each frame: (a, b, pan, tilt, roll, axial)."""
        return np.array(
            [
                np.concatenate([frame.pose, place])
                for frame, place in zip(self.frames, self.chain, strict=True)
            ]
        )
