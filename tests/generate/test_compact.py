"""One byte a weight: near, small, and refused when scales do not fit."""

import pytest
import torch

from fewer.core.errors import FileError
from fewer.generate.compact import compact, expand, weight_shapes


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
