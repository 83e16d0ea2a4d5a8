"""`fewer stitch VIDEO --output DIR`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

import tyro
from pydantic import ConfigDict, Field

from fewer.core.errors import ConfigError
from fewer.core.progress import Progress
from fewer.stitch.options import (
    MATCHERS,
    BlendOptions,
    DeviceName,
    HomographyOptions,
    LensModel,
    MatcherName,
    MatchOptions,
    SelectOptions,
    StitchOptions,
    TrackOptions,
    UnfoldOptions,
    UnwrapMode,
)

UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchRequest:
    """Turns an endoscopy video of a tube into one unrolled map of its wall."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    source: tyro.conf.Positional[Path]
    """A video, a folder of pictures, a DICOM file, or a .txt list of pictures."""
    output: Path
    """Folder for the map, its provenance, the report and the page."""
    matchers: Annotated[str, Field(pattern=r"^[a-z,-]+$", max_length=100)] = "sift,orb"
    """Whose matches go into the pool: sift, orb, loftr, loftr-tube, loftr-full, xfeat."""
    require: Annotated[str, Field(pattern=r"^[a-z,-]*$", max_length=100)] = ""
    """Matchers whose absence is an error instead of a warning."""
    unwrap: UnwrapMode = "cylinder"
    """How a frame is unrolled."""
    lens: LensModel = "equidistant"
    """Lens of the endoscope."""
    fov: Annotated[float, Field(gt=20, lt=179)] = 140.0
    """Full field of view in degrees."""
    calibrate: bool = False
    """Find the focal length from the video itself."""
    stride: Annotated[int, Field(ge=1, le=1000)] = 1
    """Use one frame out of this many; 3 suits a video of 30 frames/s."""
    weights: Path | None = None
    """Local safetensors file of the full LoFTR."""
    device: DeviceName = "auto"
    """Where learned matchers run and pixels are worked on."""
    dtype: Literal["auto", "fp32"] = "auto"
    """Networks and equations compute in fp32 or fp64, whatever the device."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Threads that share the work; 0: as many as there are processors, at most 16. The map is the same."""
    mask: Path | None = None
    """Picture whose bright pixels are the field of view."""
    mark: tuple[str, ...] = ()
    """Depth marks TIME=CM, at least two, such as 00:02=38cm 00:14.5=25cm."""
    format: Literal["png", "tiff"] = "png"
    """Of the map."""
    deep_zoom: bool = False
    """Also write each map as a Deep Zoom pyramid (pano_K.dzi), for viewers of very large pictures."""
    blend: Literal["multiband", "feather", "last"] = "multiband"
    """How frames are joined."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Makes a run repeatable."""
    resume: bool = False
    """Go on where an interrupted run of the same video, options and output folder stopped."""
    select: tyro.conf.AvoidSubcommands[SelectOptions] = field(default_factory=SelectOptions)
    """More on frames."""
    unfold: tyro.conf.AvoidSubcommands[UnfoldOptions] = field(default_factory=UnfoldOptions)
    """More on unrolling."""
    match: tyro.conf.AvoidSubcommands[MatchOptions] = field(default_factory=MatchOptions)
    """More on matching."""
    homography: HomographyOptions = field(default_factory=HomographyOptions)
    """The density-weighted homography optimisation."""
    track: TrackOptions = field(default_factory=TrackOptions)
    """The sequence."""
    painting: BlendOptions = field(default_factory=BlendOptions)
    """More on blending."""


def stitch_command(request: StitchRequest, progress: Progress) -> dict[str, object]:
    """Runs the whole journey and writes the output folder."""
    from fewer.core.alone import alone_in
    from fewer.core.config import validate
    from fewer.core.files import output_folder
    from fewer.stitch.output.marks import parse_marks
    from fewer.stitch.output.write import write_panorama
    from fewer.stitch.panorama import stitch

    parse_marks(request.mark)  # before the long work, not after
    options = validate(StitchOptions, options_of(request))
    began = perf_counter()
    output_folder(request.output)
    with alone_in(request.output):
        panorama = stitch(
            request.source,
            options,
            progress=progress,
            work=request.output / UNFINISHED,
            resume=request.resume,
            workers=request.workers or None,
        )
        result = write_panorama(panorama, request.output, request.format, request.mark, request.deep_zoom)
    for warning in result["warnings"]:  # pyright: ignore[reportGeneralTypeIssues]
        progress.say(f"note: {warning}")
    longest = max(panorama.report["segments"], key=lambda piece: piece["frames"])  # pyright: ignore
    return {
        **result,
        "held_out_rmse": longest["held_out_rmse"]["median"],
        "coverage": longest["coverage"],
        "seconds": perf_counter() - began,
    }


def options_of(request: StitchRequest) -> StitchOptions:
    """The short flags laid over the groups they belong to; flags that differ from their default win."""
    short = StitchRequest(source=request.source, output=request.output)

    def over(group: object, **values: tuple[str, object]) -> object:
        changed = {
            name: value
            for name, (flag, value) in values.items()
            if getattr(request, flag) != getattr(short, flag)
        }
        return replace(group, **changed)  # pyright: ignore[reportArgumentType]

    names, required = _matcher_names(request.matchers), _matcher_names(request.require)
    idle = [name for name in required if name not in {*names, *request.match.matchers}]
    if idle:
        raise ConfigError(
            f"--require {idle[0]}: it is not in use; name it in --matchers too, which is {request.matchers}"
        )
    return StitchOptions(
        select=over(request.select, stride=("stride", request.stride), mask=("mask", request.mask)),  # pyright: ignore
        unfold=over(  # pyright: ignore[reportArgumentType]
            request.unfold,
            unwrap=("unwrap", request.unwrap),
            lens=("lens", request.lens),
            field_of_view=("fov", request.fov),
            calibrate=("calibrate", request.calibrate),
        ),
        match=over(  # pyright: ignore[reportArgumentType]
            request.match,
            matchers=("matchers", names),
            weights=("weights", request.weights),
            device=("device", request.device),
            require=("require", required),
        ),
        homography=request.homography,
        track=request.track,
        blend=over(request.painting, blend=("blend", request.blend)),  # pyright: ignore[reportArgumentType]
        seed=request.seed,
    )


def _matcher_names(text: str) -> tuple[MatcherName, ...]:
    names = tuple(name for name in text.split(",") if name)
    unknown = [name for name in names if name not in MATCHERS]
    if unknown:
        raise ConfigError(f"matcher {unknown[0]!r} is not known; choose from {', '.join(MATCHERS)}")
    return names  # pyright: ignore[reportReturnType]
