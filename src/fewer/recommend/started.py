"""What a started run belongs to: `run.json` beside its checkpoints, compared before anything goes on."""

import hashlib
import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fewer.core.errors import ConfigError
from fewer.core.files import read_json, write_json
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.interactions import Interactions

FREE = ("epochs", "patience", "cpu_seconds", "wall_seconds", "graphs")
"""Settings of the training that may differ on resuming: when it ends, and how it is computed."""
NAME = "run.json"


def belongs(
    folder: Path, resume: bool, interactions: Interactions, features: ItemFeatures | None, **settings: object
) -> None:
    """Writes what a run in `folder` belongs to or, to resume, compares it.

    Raises `ConfigError` when the run was started with other interactions, features or settings, and where a
    run that is not resumed would mix its checkpoints with an earlier one's, whose larger steps come first.
    """
    if not resume and any(folder.rglob("step-*.safetensors")):
        raise ConfigError(
            f"{folder} holds checkpoints of an earlier run; go on with it by --resume, or give another folder"
        )
    mine = {"interactions": _digest(interactions), "features": _digest(features), **settings}
    mine = {name: asdict(value) if is_dataclass(value) else value for name, value in mine.items()}  # pyright: ignore
    mine = json.loads(json.dumps(mine, default=str))
    for name in FREE:
        mine.get("training", {}).pop(name, None)
    path = folder / NAME
    if not resume or not path.is_file():
        write_json(path, mine)
        return
    theirs = read_json(path)
    odd = [name for name in mine if theirs.get(name) != mine[name]]
    if not odd:
        return
    name = odd[0]
    before, now = theirs.get(name), mine[name]
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(key for key in now if before.get(key) != now[key])
        before, now = before.get(name), now[name]
    what = f"other {name}" if name in ("interactions", "features") else f"{name} = {before}, not {now}"
    raise ConfigError(
        f"the run in {folder} was started with {what}; resume with what it was started with, or give another "
        "--output"
    )


def _digest(data: Interactions | ItemFeatures | None) -> str:
    """SHA-256 of what a run learns from."""
    found = hashlib.sha256()
    for entry in () if data is None else fields(data):
        if entry.name not in ("notes", "_numbers"):
            value = getattr(data, entry.name)
            for part in value if isinstance(value, tuple) else (value,):
                array = part.numpy() if isinstance(part, Tensor) else part
                found.update(array.tobytes() if isinstance(array, np.ndarray) else repr(array).encode())
    return found.hexdigest()
