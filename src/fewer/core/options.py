"""From the words behind a verb to its validated request: flags win over `--config FILE.toml`.

tyro reads the options from the request's dataclass; its complaints, which it draws in a box, become one line.
"""

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from fewer.core.errors import ConfigError

Request = TypeVar("Request")

COMMON_HELP = """

 of every verb
 ------------------------------------------------------------------------------
  --json                Print the result as one JSON object on standard output.
  --config FILE.toml    Settings by the names of the options; flags win.
"""


@dataclass(frozen=True, slots=True)
class Common:
    """What every verb takes, and the words that are left for the verb itself."""

    rest: list[str]
    as_json: bool
    config: Path | None


def take_common(words: Sequence[str]) -> Common:
    """`--json` and `--config FILE` from anywhere before a lone `--`. Raises `ConfigError`."""
    rest: list[str] = []
    as_json, config = False, None
    remaining = iter(words)
    for word in remaining:
        if word == "--json":
            as_json = True
        elif word == "--config" or word.startswith("--config="):
            config = word.removeprefix("--config=") if "=" in word else next(remaining, "")
            if not config:
                raise ConfigError("--config needs the path of a TOML file")
        elif word == "--":
            rest += [word, *remaining]
        else:
            rest.append(word)
    return Common(rest, as_json, None if config is None else Path(config))


def parse_request(
    name: str, cls: type[Request], words: Sequence[str], config: Path | None, about: str | None = None
) -> tuple[Request | None, str]:
    """(request, ""), or (None, help page) when `--help` is among the words; `about` opens that page.

    Raises `ConfigError` for options that are not known or have wrong values, `FileError` for a config file
    that is missing or no TOML.
    """
    import tyro

    from fewer.core.config import validate

    defaults = {"default": _defaults_from(cls, config)} if config else {}
    shown, complaint = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(complaint):
            # A dictionary (`settings`) comes from a file alone: no subcommand may be made of it.
            options = (tyro.conf.AvoidSubcommands,)
            request = tyro.cli(
                cls, prog=f"fewer {name}", description=about, args=list(words), config=options, **defaults
            )
    except SystemExit as stop:
        if not stop.code:
            return None, shown.getvalue().rstrip() + COMMON_HELP
        raise ConfigError(one_line(complaint.getvalue(), name)) from None
    return validate(cls, request), ""


def _defaults_from(cls: type[Request], config: Path) -> Request:
    import tyro
    from pydantic import TypeAdapter, ValidationError

    from fewer.core.config import describe, read_toml

    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {_flag(field.name, hints[field.name]): field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    flags = {field.name: flag for flag, field in fields.items()}
    given = {flags.get(key, key): value for key, value in _underscored(read_toml(config)).items()}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise ConfigError(f"{config.name!r} sets {', '.join(unknown)}; allowed: {', '.join(sorted(fields))}")
    values = {}
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if key in given:
            value, hint = given[key], hints[field.name]
            if _holds_several(hint) and isinstance(value, str | int | float):
                value = [value]  # one word behind a flag is enough, too
            try:
                values[field.name] = TypeAdapter(hint).validate_python(value)
            except ValidationError as error:
                raise ConfigError(f"{config.name!r}: {describe(error, key)}") from error
        elif required:
            values[field.name] = tyro.MISSING
    return cls(**values)


def _underscored(table: Mapping[str, object]) -> dict[str, object]:
    """The settings, and those of its sections, by the names of fields; a flag has dashes in their place."""
    return {
        key.replace("-", "_"): _underscored(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
    }


def _flag(name: str, hint: object) -> str:
    """What the flag of a field is called, where tyro was told another name (`--from`)."""
    told = [getattr(extra, "name", None) for extra in getattr(hint, "__metadata__", ())]
    return next((other for other in told if isinstance(other, str)), name)


def _holds_several(hint: object) -> bool:
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return typing.get_origin(hint) is tuple


def one_line(box: str, name: str) -> str:
    """tyro's complaint without its frame and without the pages of help it quotes; what was meant is named."""
    kept: list[str] = []
    meant: list[str] = []
    guessing = False
    for raw in box.splitlines()[1:]:
        line = re.sub(r"\x1b\[[0-9;]*m", "", raw).strip("│╭╮╰╯─ \t")
        line = "" if set(line) <= {"-"} else line
        if line.startswith(("For full helptext", "Argument helptext")):
            break
        guessing = guessing or line.startswith("Perhaps you meant")
        if guessing:
            meant += re.findall(r"^--[\w.-]+", line)
        elif line:
            kept.append(line)
    text = " ".join(kept).rstrip(".") or "the options could not be read"
    union = r"no type matching \{None\}\|(.+?) could be instantiated from \[(.*?)\]\..*"
    text = re.sub(union, r"\2 is no \1", text)
    text = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no INT", text)
    hint = f"; perhaps you meant {', '.join(meant[:3])}" if meant else ""
    return f"{text}{hint}; see: fewer {name} --help"
