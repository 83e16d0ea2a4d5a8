"""A whole text-to-image folder in Sana's layout, both networks in ordinary weights under chosen names."""

import shutil
from pathlib import Path
from typing import Literal

from fewer.core.files import copy_folder
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.compact import SCALE, expand
from fewer.generate.model_folder import read_index
from fewer.generate.transformer import SanaTransformer


def write_dense(source: Path, target: Path, to: Literal["diffusers", "native"]) -> dict[str, object]:
    """Writes pipeline `source` into the empty folder `target`; what was packaged is expanded, adapters too.

    Raises `FileError` or `ConfigError` for a folder that is no pipeline of ours, or damaged.
    """
    kind = read_index(source)["_class_name"]
    transformer, autoencoder = (
        SanaTransformer.load(source / "transformer"),
        DCAutoencoder.load(source / "vae"),
    )
    networks = shutil.ignore_patterns("transformer", "vae", "__pycache__")
    copy_folder(source, target, lambda place, names: networks(place, names) if Path(place) == source else ())
    expanded = [
        str(file.relative_to(target)) for file in sorted(target.rglob("*.safetensors")) if _expand(file)
    ]
    transformer.save(target / "transformer", native=to == "native")
    autoencoder.save(target / "vae", to)
    return {"model": kind, "expanded": ["transformer", "vae", *expanded]}


def _expand(file: Path) -> bool:
    """Puts ordinary weights in a packaged file's place; whether it was one."""
    header, metadata = tensor_header(file)
    if not any(name.endswith(SCALE) for name in header):
        return False
    write_tensors(file, expand(read_tensors(file)), metadata)
    return True
