"""What every benchmark writes beside its figures: the machine, the versions, the command, the day."""

import json
import math
import platform
import shlex
import sys
import textwrap
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
WIDTH = 110


def record(name: str, figures: dict[str, object]) -> Path:
    """Writes benchmarks/results/NAME.json and gives its path."""
    packages = ("torch", "triton", "diffusers", "numpy")
    versions = {package: _version(package) for package in packages}
    machine: dict[str, object] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
    facts = {
        "when": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "python": platform.python_version(),
        "versions": {package: version for package, version in versions.items() if version},
        "machine": machine,
        **figures,
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(readable(facts) + "\n")
    return path


def readable(value: object, indent: int = 0, before: int = 0) -> str:
    """JSON that stays small: six digits a number, and whatever fits in a line stands in one line."""
    value = _rounded(value)
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or indent + before + len(text) <= WIDTH:
        return text
    inner, outer = " " * (indent + 1), " " * indent
    if isinstance(value, dict):
        keys = {json.dumps(key, ensure_ascii=False) + ": ": item for key, item in value.items()}
        rows = [inner + key + readable(item, indent + 1, len(key)) for key, item in keys.items()]
        return "{\n" + ",\n".join(rows) + f"\n{outer}}}"
    if any(isinstance(item, (dict, list, str)) for item in value):
        return "[\n" + ",\n".join(inner + readable(item, indent + 1) for item in value) + f"\n{outer}]"
    filled = textwrap.fill(text[1:-1], WIDTH, initial_indent=inner, subsequent_indent=inner)
    return f"[\n{filled}\n{outer}]"


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return (
            float(f"{value:.6g}") if abs(value) < 1e5 else round(value, 1) if math.isfinite(value) else value
        )
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
