"""`fewer learn merge`: several sites' distilled files as one; also the exports of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, FullPrecision
from fewer.core.errors import ConfigError
from fewer.core.files import write_bytes
from fewer.core.progress import Progress
from fewer.learn.distillation.distilled_set import SUFFIX, DistilledSet
from fewer.learn.distillation.merge import merge
from fewer.learn.distillation.page import to_html


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRequest:
    """What `fewer learn merge` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore
    files: tyro.conf.Positional[Annotated[tuple[Path, ...], Field(min_length=2, max_length=1000)]]
    """Distilled files of the sites."""
    output: Path
    """FILE.distilled.safetensors"""
    title: str = ""
    """Of the joined set, for its datasheet."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Accepted as by every verb, as are the next two; nothing is drawn or learnt here."""
    device: DeviceName = "auto"
    """Accepted as by every verb."""
    dtype: FullPrecision = "auto"
    """Numbers are kept as they are."""


def merge_command(request: MergeRequest, progress: Progress) -> dict[str, object]:
    """Writes the joined file and its page."""
    if not request.output.name.endswith(".safetensors"):
        raise ConfigError(f"--output was {request.output.name!r}: the file must end in {SUFFIX}")
    joined = merge([DistilledSet.load(file) for file in request.files], request.title)
    joined.save(request.output)
    page = request.output.with_name(request.output.name.removesuffix(".safetensors") + ".html")
    write_bytes(page, to_html(joined).encode())
    return {
        "output": str(request.output),
        "page": str(page),
        "pictures": len(joined),
        "classes": list(joined.datasheet.class_names),
        "sources": len(joined.datasheet.sources),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What `fewer learn export` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore
    file: tyro.conf.Positional[Path]
    """The distilled file."""
    output: Path
    """NAME.npz (MedMNIST's keys), NAME.html (the page), NAME.md (the datasheet), or a folder for PNG
    files.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Accepted as by every verb, as are the next two; nothing is drawn or learnt here."""
    device: DeviceName = "auto"
    """Accepted as by every verb."""
    dtype: FullPrecision = "auto"
    """Numbers are kept as they are."""


def export_command(request: ExportRequest, progress: Progress) -> dict[str, object]:
    """The form follows from the output's name."""
    from fewer.learn.distillation.datasheet import to_markdown

    distilled = DistilledSet.load(request.file)
    ending = request.output.suffix
    if ending == ".npz":
        distilled.to_npz(request.output)
    elif ending == ".html":
        write_bytes(request.output, to_html(distilled).encode())
    elif ending == ".md":
        write_bytes(request.output, to_markdown(distilled.datasheet).encode())
    elif ending:
        raise ConfigError(f"--output was {request.output.name!r}; allowed: .npz, .html, .md or a folder")
    else:
        distilled.to_folder(request.output)
    return {"output": str(request.output), "pictures": len(distilled.as_images())}
