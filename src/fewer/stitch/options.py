"""Every choice of the method, grouped by the step that makes it. Defaults are the ones measured in
docs/stitch.md.

The same classes serve the command line, TOML files and Python.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field

DeviceName = Literal["auto", "cpu", "cuda"]  # as in core.device, which would import torch
UnwrapMode = Literal["cylinder", "linear", "log"]
LensModel = Literal["equidistant", "pinhole", "kannala-brandt"]
MatcherName = Literal["sift", "orb", "loftr", "loftr-full", "xfeat", "loftr-tube"]
MATCHERS: tuple[str, ...] = get_args(MatcherName)

# always: what the command line has made of the flags of a group was not checked yet
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, revalidate_instances="always")


def _with_neighbour(offsets: tuple[int, ...]) -> tuple[int, ...]:
    """Without the frame before no chain begins: the second frame would be matched with nothing."""
    if 1 not in offsets:
        raise ValueError("1 must be among them")
    return offsets


Offsets = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], AfterValidator(_with_neighbour)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectOptions:
    """Which frames are used."""

    __pydantic_config__ = _STRICT
    stride: Annotated[int, Field(ge=1, le=1000)] = 1
    """Use one frame out of this many (3 for a 30 frames/s video)."""
    trim_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Seconds dropped at the start of a video."""
    max_frames: Annotated[int, Field(ge=2, le=1_000_000)] = 100_000
    """Stop after this many frames."""
    sharpness: Annotated[float, Field(ge=0, le=1)] = 0.35
    """A frame below this share of the running median sharpness is blurred."""
    max_highlight: Annotated[float, Field(gt=0, le=1)] = 0.35
    """A frame with a larger share of highlights and bubbles is rejected."""
    mask: Path | None = None
    """A picture whose bright pixels are the field of view; found from the frames if not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfoldOptions:
    """How a frame becomes a strip of wall."""

    __pydantic_config__ = _STRICT
    unwrap: UnwrapMode = "cylinder"
    """`cylinder`: rows are depth in tube radii; `linear`, `log`: rows are the radius in the picture."""
    lens: LensModel = "equidistant"
    """How an angle becomes a radius in the picture."""
    field_of_view: Annotated[float, Field(gt=20, lt=179)] = 140.0
    """Full angle in degrees at the edge of the field."""
    kannala_brandt: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """k1..k4 of rho = f (a + k1 a^3 + k2 a^5 + k3 a^7 + k4 a^9), as OpenCV's fisheye module."""
    calibrate: bool = False
    """Find the focal length from the first matches instead of from `field_of_view`."""
    width: Annotated[int, Field(ge=128, le=8192)] = 1000
    """Columns of the map: pixels once round the tube."""
    strip_width: Annotated[int, Field(ge=128, le=4096)] = 800
    """Columns of the strips in which features are found."""
    depth: Annotated[float, Field(gt=0.5, le=20)] = 2.2
    """How deep strips look, in tube radii ahead of the lens."""
    pose: bool = True
    """Fit where the camera sits in the tube (sideways, tilt) for each frame; `cylinder` only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchOptions:
    """Which matchers find points and which filters they pass."""

    __pydantic_config__ = _STRICT
    matchers: tuple[MatcherName, ...] = ("sift", "orb")
    """Whose matches go into the pool."""
    weights: Path | None = None
    """Local safetensors file for `loftr-full`."""
    student_weights: Path | None = None
    """Local safetensors file for `loftr` in place of the shipped student."""
    tube_weights: Path | None = None
    """Local safetensors file for `loftr-tube` in place of the shipped one (see
    benchmarks/stitch_train_loftr.py).
    """
    require: tuple[MatcherName, ...] = ()
    """Matchers whose absence is an error (exit 4) instead of a warning."""
    sift_features: Annotated[int, Field(ge=50, le=20000)] = 900
    """At most, of a strip."""
    sift_scale: Annotated[float, Field(ge=0.25, le=1)] = 0.5
    """Scale of the strip in which SIFT looks; it doubles the picture itself, so 0.5 means full size."""
    orb_features: Annotated[int, Field(ge=50, le=20000)] = 700
    """At most, of a strip."""
    orb_trust: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of ORB's confidence that counts in the pool; it places corners more loosely than SIFT (0.15
    suits that).
    """
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Lowe's ratio test."""
    loftr_confidence: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Least confidence of `loftr-full`."""
    device: DeviceName = "auto"
    """Where LoFTRs run and pixels are worked on; `auto` takes a GPU when something learned is asked for."""
    student_confidence: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Least confidence of the tiny `loftr`, whose cells are coarse and whose matches are tracked
    afterwards.
    """
    tube_confidence: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Least confidence of `loftr-tube`."""
    offsets: Offsets = (1, 3)
    """Each frame is matched with the used frames this many places earlier; 1 must be among them."""
    motion_filter: bool = True
    """Keep matches near the winning displacement (filter 2 of the pool)."""
    merge_filter: bool = True
    """Merge what several matchers found (filters 3 and 4)."""
    neighbour_filter: bool = True
    """Ask three of eight neighbours to move alike (filter 5)."""
    cell_cap: Annotated[int, Field(ge=1, le=10000)] = 60
    """Most matches kept in one of 8 x 16 cells (filter 6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HomographyOptions:
    """The density-weighted homography optimisation."""

    __pydantic_config__ = _STRICT
    bandwidth: Annotated[float, Field(gt=0, le=1)] = 0.04
    """h of the density, as a share of the strip's width."""
    symmetric: bool = True
    """Density is the mean over both pictures, not that of the new one alone."""
    sample_gamma: Annotated[float, Field(ge=-2, le=2)] = 0.5
    """Power of the density when sampling and scoring; +0.5 is the mode `consensus`."""
    fit_gamma: Annotated[float, Field(ge=-2, le=2)] = -0.5
    """Power of the density in the final fit; -0.5 is the mode `balanced`, 0 switches it off."""
    threshold: Annotated[float, Field(gt=0, le=100)] = 4.0
    """T of MSAC, strip pixels."""
    max_samples: Annotated[int, Field(ge=16, le=100_000)] = 2000
    """Of the robust fit: quadruples of matches that are tried at most."""
    robust_scale: Annotated[float, Field(gt=0, le=100)] = 2.0
    """c of the Geman-McClure loss, reached from 4 c in three stages."""
    regularisation: Annotated[float, Field(ge=0, le=1e3)] = 1e-3
    """lambda: pull of perspective and shear towards a plain translation, per unit of weight."""
    resolution_weight: bool = True
    """Multiply a match's confidence by how finely the camera saw that place of the wall."""
    min_matches: Annotated[int, Field(ge=4, le=1000)] = 8
    """Below it a pair of frames is not fitted."""
    min_inliers: Annotated[int, Field(ge=4, le=1000)] = 12
    """Below it a fit does not count."""
    min_inlier_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Of the matches: below it a fit does not count."""
    min_sectors: Annotated[int, Field(ge=1, le=16)] = 4
    """Inliers must lie in this many of 16 angular sectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackOptions:
    """How pairs become a sequence."""

    __pydantic_config__ = _STRICT
    lost_after: Annotated[int, Field(ge=1, le=100)] = 3
    """Failed frames in a row after which a new segment begins."""
    keyframe_shift: Annotated[float, Field(gt=0, le=1)] = 0.12
    """A frame becomes a keyframe when it moved by this share of a strip's height..."""
    keyframe_roll_degrees: Annotated[float, Field(gt=0, le=90)] = 4.0
    """... or turned by this angle."""
    loops: bool = True
    """Look for places seen before, to bound drift on return paths."""
    loop_inliers: Annotated[int, Field(ge=8, le=1000)] = 30
    """Inliers that a place seen before must have."""
    iterations: Annotated[int, Field(ge=1, le=100)] = 12
    """Rounds of the sequence adjustment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendOptions:
    """How strips become one picture."""

    __pydantic_config__ = _STRICT
    blend: Literal["multiband", "feather", "last"] = "multiband"
    """How strips are joined."""
    bands: Annotated[int, Field(ge=1, le=5)] = 3
    """Of `multiband`."""
    flatten: bool = True
    """Divide out the fall of light with depth and the camera's automatic gain."""
    near: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Strips are blended from the edge of the field to this many radii further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchOptions:
    """All of them."""

    __pydantic_config__ = _STRICT
    select: SelectOptions = field(default_factory=SelectOptions)
    unfold: UnfoldOptions = field(default_factory=UnfoldOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    homography: HomographyOptions = field(default_factory=HomographyOptions)
    track: TrackOptions = field(default_factory=TrackOptions)
    blend: BlendOptions = field(default_factory=BlendOptions)
    seed: Annotated[int, Field(ge=0)] = 0
