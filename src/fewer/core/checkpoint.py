"""Checkpoints that survive a kill at any moment: `step-00000037.safetensors`, newest readable one wins.

A checkpoint is one safetensors file whose metadata holds the step and the JSON facts, so there is no
moment at which weights and facts disagree. Older ones are deleted only after the new one is on disk.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import parse_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors

logger = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d{8})\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved at `step`."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, object], keep: int = 2
) -> Path:
    """Saves atomically and keeps the newest `keep` checkpoints. Raises `FileError`."""
    folder = Path(folder)
    path = folder / f"step-{step:08d}.safetensors"
    write_tensors(path, tensors, {"fewer.step": str(step), "fewer.facts": json.dumps(dict(facts))})
    for old in _newest_first(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def refuse_earlier_run(folder: Path, resume: bool) -> None:
    """Raises `ConfigError` where `folder`, or a folder in it, holds checkpoints and nobody asked to resume.

    A run that starts anew beside them would be resumed from them later: theirs are the larger steps.
    """
    folder = Path(folder)
    found = [*_newest_first(folder), *(path for part in _folders(folder) for path in _newest_first(part))]
    if found and not resume:
        raise ConfigError(
            f"{folder.parent.name!r} holds checkpoints of an earlier run ({len(found)}, one of step "
            f"{int(found[0].stem.removeprefix('step-'))}); "
            "go on with it by --resume, or choose another --output"
        )


def refuse_finished(result: Path) -> None:
    """Raises `ConfigError` where `result`, which a finished run leaves behind, exists already."""
    result = Path(result)
    if result.exists():
        raise ConfigError(
            f"{result.parent.name!r} holds a finished run ({result.name}); "
            "choose another --output, or delete it"
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None; damaged ones are passed over with a warning."""
    for path in _newest_first(Path(folder)):
        try:
            _, metadata = tensor_header(path)
            tensors = read_tensors(path)
            return Checkpoint(int(metadata["fewer.step"]), tensors, _facts(metadata))
        except (KeyError, ValueError) as error:
            logger.warning("passing over checkpoint %s: %s", path.name, error)
    return None


def latest_facts(folder: Path) -> dict:
    """The facts of the newest checkpoint whose header can be read, without its tensors; {} without one."""
    for path in _newest_first(Path(folder)):
        try:
            return _facts(tensor_header(path)[1])
        except (KeyError, FileError):
            continue
    return {}


def _facts(metadata: Mapping[str, str]) -> dict:
    facts = parse_json(metadata["fewer.facts"], "what the checkpoint says of its run")
    if not isinstance(facts, dict):
        raise FileError("what the checkpoint says of its run is no JSON object")
    return facts


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def flatten_state(
    state: Mapping[str, object], prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Splits a nested state dict (an optimizer's, say) into (tensors, JSON-able rest) by path."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, object] = {}
    for path, leaf in _leaves(state, prefix):
        if isinstance(leaf, Tensor):
            tensors[path] = leaf
        else:
            rest[path] = leaf
    return tensors, rest


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            # Optimizers key their state by integers; the mark keeps the type through JSON.
            yield from _leaves(child, f"{path}/{'#' if isinstance(key, int) else ''}{key}")
    elif isinstance(value, list | tuple) and value:
        for index, child in enumerate(value):
            yield from _leaves(child, f"{path}/[{index}]")
    else:
        yield path, value


def unflatten_state(tensors: Mapping[str, Tensor], rest: Mapping[str, object], prefix: str = "") -> dict:
    """Inverse of `flatten_state` (tuples come back as lists)."""
    root: dict = {}
    for path, leaf in {**rest, **tensors}.items():
        if not path.startswith(f"{prefix}/"):
            continue
        keys = path.removeprefix(f"{prefix}/").split("/")
        node = root
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
    restored = _restore(root)
    assert isinstance(restored, dict)
    return restored


def _restore(node: object) -> object:
    if not isinstance(node, dict) or not node:
        return node
    if all(key.startswith("[") for key in node):
        return [_restore(node[f"[{index}]"]) for index in range(len(node))]
    return {int(key[1:]) if key.startswith("#") else key: _restore(child) for key, child in node.items()}


def copy_into(target: torch.nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Loads the tensors under `prefix/` strictly into a module. Raises `FileError` naming what differs."""
    own = {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}
    wanted = target.state_dict()
    misshapen = [name for name in wanted.keys() & own.keys() if wanted[name].shape != own[name].shape]
    if misshapen:
        raise FileError(
            f"the checkpoint does not fit the model {prefix!r}: of another shape {sorted(misshapen)[:5]}; "
            "resume with the settings it was started with"
        )
    result = target.load_state_dict(own, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise FileError(
            f"the checkpoint does not fit the model {prefix!r}: missing {result.missing_keys[:5]}, "
            f"not known {result.unexpected_keys[:5]}; resume with the settings it was started with"
        )
