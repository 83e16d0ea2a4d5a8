"""Weight files of a model folder: one file, a named variant, or shards with an index."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fewer.core.errors import FileError
from fewer.core.files import inside, read_json, write_json
from fewer.core.tensors import write_tensors

WEIGHTS = "diffusion_pytorch_model"
VARIANTS = ("", ".bf16", ".fp16")
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
MAX_SHARD_BYTES = 5_000_000_000


def weight_files(path: str | Path, stem: str = WEIGHTS) -> list[Path]:
    """The safetensors files of a model, given its folder or its only file.

    Prefers full precision to the variants bf16 and fp16. Shard names that leave the folder are refused.
    Raises `FileError`, with `missing` set when nothing is there.
    """
    path = Path(path)
    if path.is_file():
        _refuse_pickle_name(path)
        return [path]
    if not path.is_dir():
        raise FileError(f"{path.name!r} is neither a folder nor a file; check the path", missing=True)
    if found := stored_files(path, stem):
        return found
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return [inside(path, others[0].name)]
    for file in sorted(path.iterdir()):
        _refuse_pickle_name(file)
    found = f"{len(others)} other safetensors files" if others else "no safetensors file"
    raise FileError(f"folder {path.name!r} has no {stem}.safetensors and {found}", missing=True)


def stored_files(folder: Path, stem: str, variants: Sequence[str] = VARIANTS) -> list[Path]:
    """The files of the first of these variants that is there, whole or in shards; none without any."""
    for variant in variants:
        index, single = _index(folder, stem, variant), folder / f"{stem}{variant}.safetensors"
        if index.exists():
            return _shards(index)
        if single.exists():
            return [inside(folder, single.name)]
    return []


def forget_others(folder: Path, stem: str) -> None:
    """Removes what would be read in place of STEM.safetensors: an old index, files of other variants."""
    for variant in VARIANTS:
        _index(folder, stem, variant).unlink(missing_ok=True)
        if variant:
            (folder / f"{stem}{variant}.safetensors").unlink(missing_ok=True)


def _index(folder: Path, stem: str, variant: str = "") -> Path:
    return folder / f"{stem}.safetensors.index{variant}.json"


def _refuse_pickle_name(path: Path) -> None:
    if path.suffix.lower() in _PICKLES:
        raise FileError(
            f"{path.name!r} is a pickle, which can run code when opened; "
            "turn it into safetensors with: fewer convert FILE --trust-pickle --output DIR"
        )


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise FileError(f"{index.name!r} has no weight_map of tensor names to file names")
    files = [inside(index.parent, name) for name in sorted(set(table.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        raise FileError(f"{index.name!r} names shards that are not there: {', '.join(missing)}", missing=True)
    return files


def write_shards(
    folder: Path, tensors: Mapping[str, Tensor], *, stem: str = WEIGHTS, limit: int = MAX_SHARD_BYTES
) -> list[Path]:
    """Writes one file, or several of at most `limit` bytes and their index; returns all of them."""
    groups: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if groups[-1] and filled + tensor.nbytes > limit:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += tensor.nbytes
    index = _index(folder, stem)
    if len(groups) == 1:
        file = folder / f"{stem}.safetensors"
        write_tensors(file, groups[0], {"format": "pt"})
        index.unlink(missing_ok=True)  # an old index would be read in place of the new file
        return [file]
    files = [folder / f"{stem}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    for file, group in zip(files, groups, strict=True):
        write_tensors(file, group, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    table = {name: file.name for file, group in zip(files, groups, strict=True) for name in group}
    write_json(index, {"metadata": {"total_size": total}, "weight_map": table})
    return [*files, index]
