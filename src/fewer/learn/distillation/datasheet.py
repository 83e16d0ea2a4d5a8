"""The datasheet inside a distilled file: where the set comes from, how it was made, what it may be used for.

It is data that somebody else may have written, so it is validated field by field when a file is read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import parse_json
from fewer.learn.distillation.training import Recipe

SCHEMA_VERSION = 1
NOT_ANONYMOUS = (
    "Distilled pictures are not anonymous by themselves: run the audit, and use differential privacy "
    "where a guarantee is needed."
)
REAL_PIXELS = "This set holds pixels of real pictures; it is no protection for the people in them."
INTENDED_USE = "Training and comparing classifiers. Not a medical device, not for diagnosis."


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """One real set behind the file."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str = ""
    version: str = ""
    sha256: str = ""
    """Of the pictures and labels that were distilled, as bytes, in their order."""
    pictures_per_class: tuple[int, ...] = ()
    licence: str = ""
    ethics: str = ""
    """Consent, ethics vote: what allows this use."""
    contact: str = ""
    site: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasheet:
    """Metadata key `fewer.datasheet`, as JSON."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    title: str = ""
    task: str = "image classification"
    modality: str = ""
    class_names: Annotated[tuple[str, ...], Field(min_length=2, max_length=100_000)]
    image_size: Annotated[tuple[int, int], Field()]
    """Height and width."""
    channels: Annotated[int, Field(ge=1, le=3)]
    images_per_class: Annotated[int, Field(ge=1)]
    """Stored pictures per class; in a merged file of the class with the fewest."""
    factor: Annotated[int, Field(ge=1, le=4)] = 1
    """Multi-formation: every stored picture is cut into factor x factor before training."""
    value_range: Literal["pixels", "normalized"] = "pixels"
    method: str
    method_config: dict[str, object] = field(default_factory=dict)
    seed: int = 0
    network: dict[str, object] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)
    """How to train on the set in order to reach the figures below."""
    iterations: int = 0
    seconds: float = 0.0
    code_version: str = ""
    created: str = ""
    sources: tuple[SourceFacts, ...] = ()
    licence: str = ""
    metrics: dict[str, object] = field(default_factory=dict)
    cross_architecture: dict[str, object] = field(default_factory=dict)
    privacy: dict[str, object] = field(default_factory=dict)
    intended_use: str = INTENDED_USE
    warnings: tuple[str, ...] = (NOT_ANONYMOUS,)


def holds_real_pixels(sheet: Datasheet) -> bool:
    """Whether the set, or a part of a merged one, was made of real pictures or crops of them."""
    parts = sheet.privacy.get("parts")
    parts = parts if isinstance(parts, (list, tuple)) else ()
    known = any(
        isinstance(part, dict) and part.get("real_pixels") is True for part in (sheet.privacy, *parts)
    )
    return known or REAL_PIXELS in sheet.warnings


def to_text(sheet: Datasheet) -> str:
    """JSON, keys in the order of the fields."""
    return json.dumps(asdict(sheet), ensure_ascii=False, allow_nan=False)


def from_text(text: str, file: str) -> Datasheet:
    """Raises `FileError` naming what is wrong with the datasheet of `file`."""
    try:
        return validate(Datasheet, parse_json(text, f"{file!r}: the datasheet"))
    except ConfigError as error:
        raise FileError(f"{file!r}: the datasheet does not fit: {error}") from error


def to_markdown(sheet: Datasheet) -> str:
    """A page for people."""
    lines = [f"# {_cell(sheet.title or 'Distilled set')}", ""]
    per_class = (
        f"{sheet.images_per_class} pictures per class, {sheet.image_size[0]} x {sheet.image_size[1]} pixels"
    )
    classes = ", ".join(map(_cell, sheet.class_names[:50]))
    lines += [f"{_cell(sheet.task)}; {per_class}; classes: {classes}.", ""]
    made = f"Method {sheet.method}, seed {sheet.seed}, fewer {sheet.code_version}, {sheet.created}."
    lines += [_cell(made), ""]
    for title, facts in (
        ("Figures", sheet.metrics),
        ("Other networks", sheet.cross_architecture),
        ("Privacy", sheet.privacy),
        ("Settings", sheet.method_config),
        ("Recipe", asdict(sheet.recipe)),
    ):
        if facts:
            lines += [f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items()] + [""]
    for source in sheet.sources:
        lines += ["## Source", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in asdict(source).items() if value] + [""]
    use = f"Licence of this file: {sheet.licence or 'not stated'}. Use: {sheet.intended_use}"
    lines += [_cell(use), ""]
    lines += [f"- {_cell(warning)}" for warning in sheet.warnings]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    text = text.replace("|", "/").replace("\n", " ").replace("<", "&lt;")
    return text if len(text) <= 300 else text[:297] + "..."
