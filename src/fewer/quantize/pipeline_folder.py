"""Which model a quantized network belongs to: a folder of `fewer quantize` draws on its own.

`pipeline.json` beside the weights names the pipeline that was quantized, "default" or a path relative to the
folder; text encoder, autoencoder and settings are taken from there, since they stay as they are. The same
holds for the autoencoder of a class-conditional network that draws latents.
"""

import os
from pathlib import Path

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json, write_json

NAME = "pipeline.json"


def note_pipeline(folder: Path, model: str, home: Path) -> None:
    """Writes into `folder`, whose final place is `home`, that it is the transformer of pipeline `model`."""
    path = model if model == "default" else os.path.relpath(Path(model).resolve(), home.resolve())
    write_json(folder / NAME, {"pipeline": path})


def pipeline_of(folder: Path) -> str | None:
    """ "default" or the folder of the pipeline; None for a folder that is not quantized.

    Raises `ConfigError` for a quantized model that was no pipeline's, `FileError` if the pipeline is gone.
    """
    config = folder / "config.json"
    if not config.is_file() or (folder / "model_index.json").exists():
        return None
    if "quantization_config" not in read_json(config):
        return None
    told = _told(folder)
    if not isinstance(told, str):
        raise ConfigError(
            f"{folder.name!r} holds a quantized network alone and does not say which pipeline it is of; "
            f"quantize the pipeline's folder, or set pipeline.transformer = fewer.quantize.load_model(...)"
        )
    if told == "default":
        return told
    home = (folder / told).resolve()
    if not (home / "model_index.json").is_file():
        raise FileError(
            f"{folder.name!r} was made from the pipeline {told!r}, which is not there; put it back, "
            f"or change {NAME}",
            missing=True,
        )
    return str(home)


def autoencoder_of(folder: Path) -> Path | None:
    """Folder of a class-conditional network's autoencoder, its own or its original's; None without one.

    Raises `FileError` if a quantized network was made from a folder that is gone.
    """
    own = folder / "autoencoder"
    told = _told(folder)
    if own.is_dir() or not isinstance(told, str):
        return own if own.is_dir() else None
    stage = (folder / told).resolve() / "autoencoder"
    if not stage.is_dir():
        raise FileError(
            f"{folder.name!r} was made from {told!r}, whose autoencoder is not there; put it back, "
            f"or change {NAME}",
            missing=True,
        )
    return stage


def _told(folder: Path) -> object:
    return read_json(folder / NAME).get("pipeline") if (folder / NAME).is_file() else None
