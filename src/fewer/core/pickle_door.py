"""The one door for pickles: a published `.pth` becomes safetensors, in a process of its own, under limits.

Only `fewer convert --trust-pickle` comes here. The child process unpickles with `weights_only=True` (tensors
and plain containers, no code), under limits on memory, time and open files, writes safetensors, and ends; the
parent reads those through the ordinary checks. Nested dictionaries become dotted names.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fewer.core.errors import FileError

SECONDS = 900
_WRAPPERS = ("state_dict", "model", "module", "params_ema")


def open_pickle(source: Path, target: Path, *, trusted: bool, seconds: int = SECONDS) -> None:
    """Writes the tensors of pickle `source` to the safetensors file `target`.

    Raises `FileError` if the user does not trust it, if it holds anything but tensors in containers, or if
    the child exceeds its limits.
    """
    if not source.exists():
        raise FileError(f"{source.name!r} is not there; check the path", missing=True)
    if not trusted:
        raise FileError(
            f"{source.name!r} is a pickle, which can run code when opened; if you trust where it comes from, "
            f"say --trust-pickle"
        )
    memory = 3 * source.stat().st_size + 8 * 2**30
    words = map(str, (source, target, memory, seconds))
    command = [sys.executable, "-m", "fewer.core.pickle_door", *words]
    try:
        run = subprocess.run(command, capture_output=True, errors="replace", timeout=seconds + 5)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise FileError(f"{source.name!r} was not opened within {seconds} s; refused") from error
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        reason = lines[-1][:300] if lines else f"the process ended with {run.returncode}"
        raise FileError(f"{source.name!r} cannot be opened as plain weights: {reason}")


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Tensors, and truths as tensors, of nested dictionaries and lists under dotted names; nothing else."""
    import torch

    if isinstance(value, bool):
        value = torch.tensor(value)
    if isinstance(value, torch.Tensor):
        return {prefix.removesuffix("."): value.detach().clone().contiguous()}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {}
    return {name: tensor for key, item in items for name, tensor in flatten(item, f"{prefix}{key}.").items()}


def unwrap(value: object) -> object:
    """The dictionary of weights inside the usual wrappers ({"state_dict": ...})."""
    while isinstance(value, dict):
        inner = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        value = inner
    return value


def _child(source: str, target: str, memory: int, seconds: int) -> None:
    import torch
    from safetensors.torch import save_file

    limit({"RLIMIT_CPU": seconds, "RLIMIT_AS": memory, "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0})
    value = torch.load(source, map_location="cpu", weights_only=True)
    tensors = flatten(unwrap(value))
    if not tensors:
        raise SystemExit("it holds no tensors")
    save_file(tensors, target, {"format": "pt", "source": json.dumps(Path(source).name)})  # pyright: ignore


def limit(wanted: Mapping[str, int]) -> None:
    """Limits this process, by the names of module `resource`; a stricter limit of the user's own stays."""
    import resource

    for name, most in wanted.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
