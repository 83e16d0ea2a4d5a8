"""Safetensors files: the header is judged before any tensor is allocated; a checksum guards the rest.

The safetensors library refuses truncated files but not flipped bits, hence the SHA-256 under the metadata
key `fewer.sha256`, taken over all tensor bytes. Files without it (other people's) load without that check.
"""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from fewer.core.errors import FileError
from fewer.core.files import plain_file, refuse_pickle, sync_folder

MAX_HEADER_BYTES = 100 * 2**20
MAX_TENSORS = 50_000
CHECKSUM = "fewer.sha256"

_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor; `dtype` is safetensors' name (`F32`, `BF16`, …)."""

    dtype: str
    shape: tuple[int, ...]


def tensor_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """(tensors, metadata) of a safetensors file, read without its data. Raises `FileError`."""
    path = plain_file(path)
    refuse_pickle(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise FileError(f"{path.name!r} is no safetensors file: its header length is {length}")
        raw = stream.read(length)
    if raw.count(b'"dtype"') > MAX_TENSORS:  # before a parser builds them all
        raise FileError(f"{path.name!r} has more than {MAX_TENSORS:,} tensors; refused")
    try:
        # A name that occurs twice makes its object None, which no check below lets pass.
        header = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=lambda pairs: dict(pairs) if len({n for n, _ in pairs}) == len(pairs) else None,
        )
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path.name!r} has a damaged header: {error}") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise FileError(
            f"{path.name!r} has a header that is no object of up to {MAX_TENSORS:,} distinct names"
        )
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileError(f"{path.name!r} has metadata that is not text")
    return _check_layout(path.name, header, size - 8 - length), metadata


def _check_layout(file: str, header: Mapping[str, object], data_bytes: int) -> dict[str, TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise FileError(f"{file!r}: tensor {name[:80]!r} has a malformed entry")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        if not whole or not all(type(n) is int and n >= 0 for n in [*shape, *offsets]):
            raise FileError(f"{file!r}: tensor {name[:80]!r} has a malformed shape or offsets")
        if not isinstance(dtype, str) or dtype not in _SIZES:
            raise FileError(f"{file!r}: tensor {name[:80]!r} has unknown dtype {str(dtype)[:20]!r}")
        begin, end = offsets
        if end - begin != prod(shape) * _SIZES[dtype] or end > data_bytes:
            raise FileError(f"{file!r}: tensor {name[:80]!r} does not fill the bytes it claims")
        spans.append((begin, end))
        infos[name] = TensorInfo(dtype, tuple(shape))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise FileError(f"{file!r} has overlapping tensors or holes between them")
        position = end
    if position != data_bytes:
        raise FileError(f"{file!r} has {data_bytes - position} bytes that belong to no tensor")
    return infos


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """All tensors of a safetensors file on `device`. Raises `FileError` if anything is off."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _, metadata = tensor_header(path)
    if CHECKSUM in metadata and _data_digest(path) != metadata[CHECKSUM]:
        raise FileError(f"{Path(path).name!r} is damaged: its checksum does not match; copy it again")
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{Path(path).name!r} cannot be read: {error}") from error


def _data_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        stream.seek(8 + struct.unpack("<Q", stream.read(8))[0])
        while block := stream.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _ordered(header: bytes) -> bytes:
    """The header with its metadata sorted: the library's order is random, we promise equal bytes."""
    entries = json.loads(header)
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text.ljust(len(header)) if len(text) <= len(header) else header


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes all tensors with a checksum, the whole file or nothing. Raises `FileError`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    ready = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    pointers = [tensor.data_ptr() for tensor in ready.values() if tensor.numel()]
    if len(set(pointers)) != len(pointers):  # the library refuses shared memory
        ready = {name: tensor.clone() for name, tensor in ready.items()}
    facts = {name: text for name, text in (metadata or {}).items() if name != CHECKSUM}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        os.close(handle)
        try:
            # The header must hold the digest of the data behind it: write once, patch the fixed-length field.
            save_file(ready, temporary, {**facts, CHECKSUM: "0" * 64})
            digest = _data_digest(Path(temporary))
            with open(temporary, "r+b") as stream:
                length = struct.unpack("<Q", stream.read(8))[0]
                blank = f'"{CHECKSUM}":"'.encode()
                header = stream.read(length).replace(blank + b"0" * 64, blank + digest.encode(), 1)
                header = _ordered(header)
                stream.seek(8)
                stream.write(header)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    except (OSError, SafetensorError) as error:  # a full disk comes as either
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileError(f"cannot write {path.name!r}: {reason}; choose another --output") from error
