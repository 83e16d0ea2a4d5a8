import json
import random
import resource
import signal
import struct
import time
from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors, tensor_header, write_tensors


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list, begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.int64]
)
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        "odd": torch.randn(1, 5, 123).to(dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
        "scalar": torch.ones((), dtype=dtype),
        "view": torch.randn(4, 6).to(dtype).t(),
    }
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors, {"who": "me", "zeros": "0" * 64})
    back = read_tensors(path)
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    infos, metadata = tensor_header(path)
    assert infos["odd"].shape == (1, 5, 123) and metadata["who"] == "me" and metadata["zeros"] == "0" * 64


def test_shared_memory_is_written_twice(tmp_path: Path) -> None:
    tensor = torch.randn(3)
    write_tensors(tmp_path / "a.safetensors", {"a": tensor, "b": tensor})
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["b"], tensor)


def test_every_truncation_and_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.randn(7, 3), "b": torch.arange(5)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError):
            read_tensors(path)
    data_begins = 8 + struct.unpack("<Q", whole[:8])[0]
    for position in range(data_begins, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(FileError, match="checksum"):
            read_tensors(path)


def test_random_mutations_end_in_a_file_error_or_a_load(tmp_path: Path) -> None:
    path, draw = tmp_path / "a.safetensors", random.Random(0)
    write_tensors(path, {"layer.weight": torch.randn(3, 4), "layer.bias": torch.randn(3)})
    whole, began = path.read_bytes(), time.monotonic()
    refused = 0
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except FileError:
            refused += 1
    assert refused > 1500
    assert (time.monotonic() - began) / 2000 < 0.1


HOSTILE = {
    "offsets overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
    "hole": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "tail": ({"a": entry([1], 0, 4)}, b"\0" * 12),
    "beyond": ({"a": entry([3], 0, 12)}, b"\0" * 4),
    "shape times dtype": ({"a": entry([3], 0, 8)}, b"\0" * 8),
    "overflow": ({"a": entry([4194305, 4194305, 211106198978564], 0, 4)}, b"\0" * 4),
    "negative": ({"a": entry([-1], 0, 4)}, b"\0" * 4),
    "boolean": ({"a": entry([True], 0, 4)}, b"\0" * 4),
    "dtype": ({"a": entry([1], 0, 4, "F99")}, b"\0" * 4),
    "no dict": ({"a": 3}, b""),
    "list": ([1, 2], b""),
    "metadata": ({"__metadata__": {"a": 3}}, b""),
    "not utf-8": (b"\xff\xfe\xfd", b""),
    "not json": (b'{"a":', b""),
    "deep": (b"[" * 50_000, b""),
    "twice": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":3}', b""),
    "many": ({f"t{i}": entry([0], 0, 0) for i in range(100_000)}, b""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_within_a_second(case: str, tmp_path: Path) -> None:
    header, data = HOSTILE[case]
    path = raw_file(tmp_path / "a.safetensors", header, data)
    began = time.monotonic()
    with pytest.raises(FileError):
        read_tensors(path)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("length", [0, 1, 2**40, 2**63])
def test_header_lengths_that_cannot_be(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(FileError, match="header length"):
        tensor_header(path)


def test_missing_folder_pickle_and_read_only_target(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        read_tensors(tmp_path / "none")
    assert caught.value.missing
    with pytest.raises(FileError, match="plain file"):
        read_tensors(tmp_path)
    (tmp_path / "p").write_bytes(b"\x80\x04.")
    with pytest.raises(FileError, match="pickle"):
        read_tensors(tmp_path / "p")
    with pytest.raises(FileError, match="cannot write"):
        write_tensors(tmp_path / "p" / "a.safetensors", {"a": torch.ones(1)})


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors, facts = {"a": torch.ones(3), "é": torch.zeros(2)}, {f"key{n}": f'"{n}\\ü' for n in range(8)}
    for name in "abcd":
        write_tensors(tmp_path / name, tensors, facts)
    assert len({(tmp_path / name).read_bytes() for name in "abcd"}) == 1
    assert tensor_header(tmp_path / "a")[1].items() >= facts.items()
    assert set(read_tensors(tmp_path / "a")) == set(tensors)


def test_a_full_disk_is_a_file_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"a": torch.ones(3)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(FileError, match="cannot write 'a'"):
            write_tensors(tmp_path / "a", {"a": torch.ones(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_tensors(tmp_path / "a")["a"].tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
