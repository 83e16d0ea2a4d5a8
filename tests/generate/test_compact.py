"""Small weights: near, small, exact where whole numbers are, and refused where parts do not fit."""

import zlib
from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.compact import compact, deflated, expand, weight_shapes


def test_large_weights_become_bytes_and_come_back_near() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.weight": torch.randn(64, 80, generator=generator) * torch.logspace(-3, 2, 64)[:, None],
        "conv.weight": torch.randn(512, 1, 3, 3, generator=generator),
        "a.bias": torch.randn(64, generator=generator),
        "zero.weight": torch.zeros(64, 64),
        "steps": torch.tensor([3]),
    }
    stored = compact(tensors)
    assert stored["a.weight"].dtype == stored["conv.weight"].dtype == torch.int8
    assert stored["a.bias"].dtype == torch.bfloat16 and torch.equal(stored["steps"], tensors["steps"])
    again = expand(stored, torch.float32)
    assert again.keys() == tensors.keys()
    for name in ("a.weight", "conv.weight"):
        rows, near = tensors[name].flatten(1), again[name].flatten(1)
        assert ((near - rows).abs().amax(dim=1) <= rows.abs().amax(dim=1) / 253).all()
    assert not again["zero.weight"].any()
    assert expand(stored)["a.weight"].dtype == torch.bfloat16


def test_a_plain_file_is_left_alone() -> None:
    tensors = {"a": torch.ones(3)}
    assert expand(tensors)["a"] is tensors["a"]
    assert weight_shapes({"a": (3,)}, "x") == {"a": (3,)}


@pytest.mark.parametrize("shapes", [{"b.row_scale": (3,)}, {"a": (4, 2), "a.row_scale": (3,)}])
def test_scales_that_fit_nothing_are_refused(shapes: dict) -> None:
    with pytest.raises(FileError, match="row_scale"):
        weight_shapes(shapes, "file")


def packed(shape: tuple[int, ...] = (6, 40, 1, 1), seed: int = 0) -> tuple[dict, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    codes = (3 * torch.randn(rows, columns, generator=generator)).round().to(torch.int8)
    scale = torch.rand(rows, generator=generator).bfloat16()
    return deflated("a.weight", codes, scale, shape), codes, scale


@pytest.mark.parametrize("shape", [(6, 40, 1, 1), (1, 5), (123, 1), (5, 1, 3, 3), (300, 400)])
def test_whole_numbers_times_scales_come_back_exactly(shape: tuple[int, ...], tmp_path: Path) -> None:
    stored, codes, scale = packed(shape)
    write_tensors(tmp_path / "a.safetensors", stored)
    header, _ = tensor_header(tmp_path / "a.safetensors")
    assert weight_shapes({name: info.shape for name, info in header.items()}, "a") == {"a.weight": shape}
    again = expand(read_tensors(tmp_path / "a.safetensors"), torch.float64)["a.weight"]
    assert torch.equal(again, (codes.double() * scale.double()[:, None]).view(shape))


def test_extreme_codes_survive() -> None:
    codes = torch.arange(-127, 128, dtype=torch.int8).repeat(2, 1)
    near = expand(deflated("a", codes, torch.ones(2), (2, 255)), torch.float32)["a"]
    assert torch.equal(near, codes.float())


def test_few_levels_take_few_bits_and_the_same_bytes_twice() -> None:
    stored, codes, _ = packed((300, 400))
    count = torch.bincount(codes.flatten().int() + 128).double()
    share = count[count > 0] / codes.numel()
    entropy = -(share * share.log2()).sum().item()
    bits = 8 * len(stored["a.weight.deflated"]) / codes.numel()
    assert entropy < bits < entropy + 0.1
    assert torch.equal(stored["a.weight.deflated"], packed((300, 400))[0]["a.weight.deflated"])


def _cut(stored: dict) -> dict:
    return stored | {"a.weight.deflated": stored["a.weight.deflated"][:-3]}


def _longer(stored: dict) -> dict:
    return stored | {
        "a.weight.deflated": torch.cat([stored["a.weight.deflated"], torch.zeros(9, dtype=torch.uint8)])
    }


def _noise(stored: dict) -> dict:
    return stored | {"a.weight.deflated": torch.full((400,), 255, dtype=torch.uint8)}


def _bomb(stored: dict) -> dict:
    """A stream of 16 kB whose zeros would fill 16 MB."""
    stream = zlib.compress(bytes(2**24), 1)[2:-4]
    shape = torch.empty(0, 6, 2**24 // 6, dtype=torch.uint8)
    return stored | {
        "a.weight.deflated": torch.frombuffer(bytearray(stream), dtype=torch.uint8),
        "a.weight.shape": shape,
    }


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_cut, "does not hold|damaged"),
        (_longer, "does not hold"),
        (_noise, "damaged|does not hold"),
        (_bomb, "too few for"),
        (lambda s: s | {"a.weight.deflated": s["a.weight.deflated"].to(torch.int16)}, "must be bytes"),
        (lambda s: s | {"a.weight.deflated": s["a.weight.deflated"][None]}, "belongs to no weight"),
        (lambda s: s | {"a.weight.shape": torch.empty(0, 6, 41, dtype=torch.uint8)}, "does not hold"),
        (
            lambda s: s | {"a.weight.shape": torch.empty(0, 2**20, 2**40, dtype=torch.uint8)},
            "scales for rows",
        ),
        (lambda s: s | {"a.weight.shape": torch.empty(0, 6, 2**40, dtype=torch.uint8)}, "too few for"),
        (lambda s: s | {"a.weight.shape": torch.empty(0, 6, dtype=torch.uint8)}, "shape is"),
        (lambda s: s | {"a.weight.shape": torch.empty(6, 40, dtype=torch.uint8)}, "shape is"),
        (lambda s: s | {"a.weight.row_scale": torch.ones(5)}, "scales for rows"),
        (lambda s: s | {"a.weight.row_scale": torch.ones(6, dtype=torch.int8)}, "finite"),
        (lambda s: s | {"a.weight.row_scale": torch.full((6,), float("nan"))}, "finite"),
        (lambda s: s | {"a.weight": torch.ones(6, 40)}, "twice"),
        (lambda s: {k: v for k, v in s.items() if not k.endswith("row_scale")}, "in part"),
        (lambda s: {k: v for k, v in s.items() if not k.endswith("shape")}, "belongs to no weight"),
        (lambda s: {k: v for k, v in s.items() if not k.endswith("deflated")}, "no deflated|scales for rows"),
        (lambda s: {"a.weight": torch.ones(6, 40), "a.weight.row_scale": torch.ones(6)}, "no bytes"),
    ],
)
def test_hostile_parts_end_in_one_clear_error(change, text: str) -> None:
    stored, *_ = packed((6, 40))
    with pytest.raises(FileError, match=text):
        expand(change(stored))
