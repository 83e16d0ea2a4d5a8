"""`fewer convert`: what it is asked and what it answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName
from fewer.core.progress import Progress
from fewer.quantize.conversion import Dialect, convert


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertRequest:
    """What `fewer convert` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    source: tyro.conf.Positional[Path]
    """A checkpoint: a quantized folder or file of any known form, a 16-bit Sana, DC-AE or pipeline
    ("default": the built-in one), or a pickle."""
    output: Path
    """New folder for the result."""
    to: Dialect = "fewer"
    """The form to write."""
    trust_pickle: bool = False
    """Open a .pth or .pt, in a process of its own that reads nothing but weights."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Accepted as by every verb, as are the next two; nothing is drawn or computed on a GPU here."""
    device: DeviceName = "auto"
    """Accepted as by every verb."""
    dtype: Literal["auto"] = "auto"
    """Numbers keep the format that the other form asks for."""


def convert_command(request: ConvertRequest, progress: Progress) -> dict[str, object]:
    """Converts and says what was written."""
    progress.say(f"converting {request.source.name} to {request.to}")
    return convert(request.source, request.output, request.to, trust_pickle=request.trust_pickle)
