"""`fewer bench NAME`: runs one script of `benchmarks/` and hands on the JSON that it writes.

The scripts live beside the package in a checkout, not in the wheel: a figure and its peer belong to a clone.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ConfigDict, Field

from fewer.core.device import DtypeName
from fewer.core.errors import ConfigError, FewerError, FileError
from fewer.core.files import read_json, write_json
from fewer.core.progress import Progress

NAMES = {
    "sana": "engine_sana",
    "linear": "engine_linear",
    "decode": "engine_decode",
    "flux-block": "engine_flux_block",
    "parallel": "scaling",
}
"""Short names; any other name is that of a script without its ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """Which figures to measure."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: tyro.conf.Positional[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)]]
    """sana, linear, decode, flux-block, parallel, or a script in benchmarks/ without .py."""
    output: Path | None = None
    """Where to write the figures as JSON, beside benchmarks/results."""
    tiny: bool = False
    """A dry run with small shapes (engine scripts: sana, linear, decode, flux-block)."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """Where to compute, for scripts that can be told."""
    dtype: DtypeName = "auto"
    """Number format, for scripts that can be told."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """For scripts that take one; without it they use their own, which is fixed."""
    only: str = ""
    """Of the engine scripts' contenders, those whose name contains this."""
    works: str = ""
    """Of the engine scripts' sizes or shapes, those whose title contains this."""
    folder: Path | None = None
    """The folder of the scripts, in place of the checkout's."""


def bench_command(request: BenchRequest, progress: Progress) -> dict[str, object]:
    """Runs the script in a process of its own, with this Python, and returns what it wrote.

    Raises `ConfigError` where there is no such script or for an option it does not take, `FileError` and
    `FewerError` with the script's last words if it fails.
    """
    folder = request.folder or _folder()
    script = folder / f"{NAMES.get(request.name, request.name.replace('-', '_'))}.py"
    # Beside our own programs lie the parts that they share; a folder of somebody else's is taken as it is.
    programs = [
        path for path in folder.glob("*.py") if request.folder or "__main__" in path.read_text("utf-8")
    ]
    if script not in programs:
        known = sorted({*NAMES, *(path.stem for path in programs)})
        raise ConfigError(f"no benchmark is called {request.name!r}; there are {', '.join(known)}")
    options = _options(request, script)
    progress.say(f"running {script.name}; its contenders appear as they finish")
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "figures.json"
        engine = "engine_" in script.stem
        before = _written(folder / "results")
        words = [sys.executable, str(script), *options, *(["--output", str(target)] if engine else [])]
        # The script's own lines go to standard error, so that --json keeps standard output to itself.
        run = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if run.returncode:
            raise FewerError(f"{script.name} ended with code {run.returncode}; its last words stand above")
        found = [target] if engine else _newer(folder / "results", before)
        figures = {path.stem: read_json(path) for path in found}
    result: dict[str, object] = figures["figures"] if engine else figures or _last_json(run.stdout)  # pyright: ignore
    if request.output is not None:
        write_json(request.output, result)
    return {"name": request.name, "script": script.name, "output": _text(request.output), "figures": result}


def _options(request: BenchRequest, script: Path) -> list[str]:
    """Words for the script. Raises `ConfigError` for an option that it does not declare."""
    given = {"--tiny": []} if request.tiny else {}
    given |= {"--device": [request.device]} if request.device != "auto" else {}
    given |= {"--only": [request.only]} if request.only else {}
    given |= {"--works": [request.works]} if request.works else {}
    given |= {"--seed": [str(request.seed)]} if request.seed is not None else {}
    given |= {"--dtype": [request.dtype]} if request.dtype != "auto" else {}
    declared, own = script.read_text(encoding="utf-8"), ("--tiny", "--device", "--only", "--works")
    for flag in given:
        if f'"{flag}"' not in declared and not ("engine_" in script.stem and flag in own):
            raise ConfigError(f"{script.name} takes no {flag}; leave it out, or see the script's --help")
    return [word for flag, values in given.items() for word in (flag, *values)]


def _folder() -> Path:
    for place in (Path(__file__).parents[2], Path.cwd()):
        if (place / "benchmarks" / "README.md").is_file():
            return place / "benchmarks"
    raise FileError(
        "the benchmark scripts are not beside this installation; run from a clone of the repository, or name "
        "their folder with --folder",
        missing=True,
    )


def _written(results: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in results.glob("*.json")}


def _newer(results: Path, before: dict[Path, int]) -> list[Path]:
    return sorted(path for path, when in _written(results).items() if before.get(path) != when)


def _last_json(text: str) -> dict[str, object]:
    """What a script printed, if it was one JSON object."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return {"printed": text[-4000:]}
    return found if isinstance(found, dict) else {"printed": found}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
