"""From untrusted settings (command line, TOML, JSON) to a validated frozen dataclass."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_bytes

Request = TypeVar("Request")


def validate(cls: type[Request], value: object) -> Request:
    """An instance of `cls` whose every field keeps its constraints.

    `value` is a mapping or an instance whose constructor did not check. Raises `ConfigError` with the
    field's name, what was given and what is allowed.
    """
    if isinstance(value, cls):
        value = {name: getattr(value, name) for name in cls.__dataclass_fields__}  # type: ignore[attr-defined]
    try:
        return TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        raise ConfigError(describe(error)) from error


def describe(error: ValidationError, field: str = "") -> str:
    """One line a person can act on: every wrong field (within `field`), its value, and what is allowed."""
    parts = []
    for problem in error.errors():
        where = ".".join(map(str, [field, *problem["loc"]] if field else problem["loc"])) or "the request"
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            parts.append(f"{where} is not a known setting")
            continue
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # of the whole: it says what was given, allowed, and to be tried
            parts.append(f"{where}: {cause}" if problem["loc"] or field else str(cause))
            continue
        given = repr(problem["input"])
        given = given if len(given) <= 60 else given[:57] + "…"
        message = problem["msg"][0].lower() + problem["msg"][1:]
        parts.append(f"{where} was {given}: {message}")
    return "; ".join(parts)


def read_toml(path: Path) -> Mapping[str, object]:
    """The settings of a TOML file. Raises `FileError` if it is missing or no TOML."""
    raw = read_bytes(path, 2**20)
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also nested too deep, or a number of too many digits
        raise FileError(f"{Path(path).name!r} is not valid TOML: {error}") from error
