"""From any dialect to any other, whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import refuse_pickle
from fewer.core.pickle_door import open_pickle
from fewer.core.tensors import tensor_header
from fewer.generate.model_folder import DEFAULT_MODEL
from fewer.quantize import dialect_cache_dit, dialect_deepcompressor, dialect_lite, dialect_nunchaku
from fewer.quantize.checkpoint import QuantizedCheckpoint, save_quantized
from fewer.quantize.load import read_checkpoint
from fewer.quantize.pipeline_dense import write_dense

Dialect = Literal[
    "fewer", "nunchaku", "nunchaku-legacy", "nunchaku-lite", "cache-dit", "deepcompressor",
    "diffusers", "native", "safetensors",
]  # fmt: skip
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def convert(source: Path, output: Path, to: Dialect, *, trust_pickle: bool = False) -> dict[str, object]:
    """Reads `source` in whatever form it is and writes `output` as `to`; returns what was done.

    16-bit Sana and DC-AE checkpoints go between diffusers and native names; pickles go through the one door
    first. A pipeline's folder ("default" is the built-in one) becomes one of ordinary weights.
    Raises `ConfigError` or `FileError`; `output` then does not exist.
    """
    source = DEFAULT_MODEL if str(source) == "default" else source
    if not source.exists():
        raise FileError(f"{source.name!r} is not there; check the path", missing=True)
    with tempfile.TemporaryDirectory(prefix="fewer-convert-") as folder:
        opened = _through_the_door(source, Path(folder), trust_pickle)
        if to == "safetensors":
            if opened == source:
                raise ConfigError(f"{source.name!r} is no pickle; choose another --to")
            return _whole(output, lambda target: _copy(opened, target), {"from": "pickle"})
        if to in ("diffusers", "native") and (opened / "model_index.json").is_file():
            return _whole(output, lambda target: write_dense(opened, target, to), {"from": "pipeline"})
        if to in ("diffusers", "native"):
            whole = _as_folder(opened, source, Path(folder))
            return _whole(output, lambda target: _sixteen_bit(whole, target, to), {"from": "16-bit"})
        try:
            checkpoint, dialect = read_checkpoint(opened)
        except FileError as error:
            if hint := _hint(opened):
                raise FileError(f"{error}; {hint}", missing=error.missing) from error
            raise
        return _whole(output, lambda target: _write(checkpoint, target, to, source.stem), {"from": dialect})


def _through_the_door(source: Path, folder: Path, trusted: bool) -> Path:
    """The source itself, or safetensors made of its pickles."""
    if source.is_file():
        if not _is_pickle(source):
            return source
        open_pickle(source, folder / f"{source.stem}.safetensors", trusted=trusted)
        return folder / f"{source.stem}.safetensors"
    pickles = [path for path in sorted(source.iterdir()) if path.suffix in _PICKLES]
    if not pickles or list(source.glob("*.safetensors")):
        return source
    for path in pickles:
        open_pickle(path, folder / f"{path.stem}.safetensors", trusted=trusted)
    return folder


def _as_folder(opened: Path, source: Path, place: Path) -> Path:
    """One weight file, or what came through the door, as a model's folder: with the config that stood beside
    it, and with the source's name, which may be that of a published model."""
    if opened == source and opened.is_dir():
        return source
    files = [opened] if opened.is_file() else sorted(opened.glob("*.safetensors"))
    if len(files) != 1:
        raise FileError(
            f"{source.name!r} holds {len(files)} weight files without an index; convert one alone"
        )
    # A file that is called what such files are called in every folder says nothing; its folder may.
    named_so = source.is_file() and source.stem in ("model", "diffusion_pytorch_model")
    name = source.absolute().parent.name if named_so else source.name if source.is_dir() else source.stem
    folder = place / "model" / (name or "model")
    folder.mkdir(parents=True)
    shutil.copyfile(files[0], folder / "model.safetensors")
    config = (source if source.is_dir() else source.parent) / "config.json"
    if config.is_file():
        shutil.copyfile(config, folder / "config.json")
    return folder


def _is_pickle(path: Path) -> bool:
    try:
        refuse_pickle(path)
    except FileError:
        return True
    return False


def _write(checkpoint: QuantizedCheckpoint, target: Path, to: Dialect, name: str) -> dict[str, object]:
    """Writes into the empty folder `target`; returns what could not be kept in 4 bits."""
    if to != "fewer" and "model_type" in checkpoint.config and "_class_name" not in checkpoint.config:
        raise ConfigError(
            f"{to} is a form of diffusion models; a language model stays in our folder (--to fewer)"
        )
    if to == "fewer":
        save_quantized(checkpoint, target)
    elif to == "nunchaku":
        dialect_nunchaku.write_file(checkpoint, target / dialect_nunchaku.file_name(checkpoint, name))
    elif to == "nunchaku-legacy":
        dialect_nunchaku.write_legacy(checkpoint, target)
    elif to == "nunchaku-lite":
        return {"kept_in_16_bits": dialect_lite.write_folder(checkpoint, target)}
    elif to == "cache-dit":
        return {"left_to_the_original": dialect_cache_dit.write_folder(checkpoint, target)}
    else:
        dialect_deepcompressor.write_folder(checkpoint, target)
    return {"layers": len(checkpoint.layers)}


def _sixteen_bit(source: Path, target: Path, to: Dialect) -> dict[str, object]:
    """A 16-bit Sana or DC-AE between diffusers' and its authors' names."""
    from fewer.generate.autoencoder import DCAutoencoder
    from fewer.generate.transformer import SanaTransformer

    failures = []
    for kind in (SanaTransformer, DCAutoencoder):
        try:
            model = kind.load(source)
        except (FileError, ConfigError) as error:
            failures.append(f"{kind.__name__}: {error}")
            continue
        if isinstance(model, DCAutoencoder):
            model.save(target, "native" if to == "native" else "diffusers")
        else:
            model.save(target, native=to == "native")
        return {"model": kind.__name__}
    raise FileError(f"{source.name!r} is neither a Sana nor a DC-AE: " + "; ".join(failures))


def _hint(opened: Path) -> str:
    """What to ask for instead where it is a pipeline, a 16-bit Sana or DC-AE, or a part; else nothing."""
    if (opened / "model_index.json").is_file():
        return (
            "--to diffusers writes a whole pipeline in ordinary weights, `fewer quantize` makes 4 bits of it"
        )
    files = [opened] if opened.is_file() else sorted(opened.glob("*.safetensors"))
    try:
        names = set(tensor_header(files[0])[0]) if files else set()
    except FileError:
        return ""
    if any(name.endswith(".codes") for name in names):
        return "" if opened.is_dir() else "it is the file of a folder of fewer quantize: convert the folder"
    known = ("encoder.", "decoder.", "transformer_blocks.", "blocks.")
    if any(name.endswith("qweight") for name in names) or not any(name.startswith(known) for name in names):
        return ""
    return (
        "its weights are in 16 or 32 bits: --to diffusers or --to native writes a Sana or a DC-AE under the "
        "other's names, and `fewer quantize` makes 4 bits of them"
    )


def _copy(opened: Path, target: Path) -> dict[str, object]:
    for path in [opened] if opened.is_file() else sorted(opened.glob("*.safetensors")):
        shutil.copyfile(path, target / path.name)
    return {}


def _whole(
    output: Path, write: Callable[[Path], dict[str, object]], facts: dict[str, object]
) -> dict[str, object]:
    """Writes beside `output` and renames at the end."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output.name!r} exists and is not empty; choose another")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name[:40]}.", dir=output.parent) as folder:
            target = Path(folder) / "whole"
            target.mkdir()
            facts = facts | write(target)
            if output.exists():
                output.rmdir()
            target.rename(output)
    except OSError as error:
        raise FileError(f"cannot write {output.name!r}: {error.strerror}; choose another --output") from error
    files = sorted(path for path in output.rglob("*") if path.is_file())
    return facts | {"output": str(output), "bytes": sum(path.stat().st_size for path in files)}
