"""Finished groups on disk: what bounds memory, lets an interrupted run resume, and keeps errors from doing
harm.
"""

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from types import TracebackType

import torch

from fewer.core.errors import FileError
from fewer.core.files import read_json, write_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.quantize.layer import QuantizedLayer, layer_from_tensors
from fewer.quantize.measure import LayerReport


class LayerStore:
    """A folder with one safetensors file per group, written atomically; a context manager.

    With `folder=None` it lives in a temporary folder and is gone afterwards. A folder that belongs to other
    settings or another model (its fingerprint differs) is refused.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="fewer-quantize-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder)  # pyright: ignore
        digest = hashlib.sha256(fingerprint.encode()).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = self.folder / "run.json"
        if facts.exists() and read_json(facts).get("fingerprint") != digest:
            raise FileError(
                f"the unfinished run in {self.folder.name!r} is of other settings, data or weights; "
                f"use the same ones, or start over without --resume"
            )
        write_json(facts, {"fingerprint": digest})

    def __enter__(self) -> "LayerStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def __contains__(self, key: str) -> bool:
        """Whether the group is there and whole; a damaged one is to be made again."""
        if not self._path(key).exists():
            return False
        try:
            self.read(key)
        except (FileError, KeyError, TypeError, ValueError):
            return False
        return True

    def add(self, key: str, layers: dict[str, QuantizedLayer], reports: list[LayerReport]) -> None:
        """Writes a group, whole or not at all."""
        tensors = {
            f"{name}.{part}": tensor
            for name, layer in layers.items()
            for part, tensor in layer.tensors().items()
        }
        metadata = {
            "layers": json.dumps({name: layer.facts() for name, layer in layers.items()}),
            "reports": json.dumps([dataclasses.asdict(report) for report in reports]),
        }
        write_tensors(self._path(key), tensors, metadata)

    def read(
        self, key: str, device: torch.device | str = "cpu"
    ) -> tuple[dict[str, QuantizedLayer], list[LayerReport]]:
        """A group as it was added, its tensors on `device`."""
        path = self._path(key)
        # copies take the room that replaced layers leave; views of the file would keep the file in memory
        tensors = {name: tensor.clone() for name, tensor in read_tensors(path, device).items()}
        _, metadata = tensor_header(path)
        layers = {}
        for name, facts in json.loads(metadata["layers"]).items():
            own = {
                part[len(name) + 1 :]: tensor
                for part, tensor in tensors.items()
                if part.startswith(f"{name}.")
            }
            layers[name] = layer_from_tensors(own, facts, name)
        reports = [
            LayerReport(**(report | {"shape": tuple(report["shape"])}))
            for report in json.loads(metadata["reports"])
        ]
        return layers, reports

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
