import pytest
import torch

from fewer.core.errors import FileError
from fewer.quantize.formats import FORMATS, encode_weight
from fewer.quantize.layer import QuantizedLayer, layer_from_tensors, pack_halves, unpack_halves


def make(name: str, out: int = 5, dim: int = 123) -> QuantizedLayer:
    codes, scales = encode_weight(torch.randn(out, dim), FORMATS[name])
    return QuantizedLayer(
        format=name, shape=(out, dim), codes=codes, scales=scales, smooth=torch.rand(dim) + 0.5,
        down=torch.randn(3, dim), up=torch.randn(out, 3), bias=torch.randn(out), unsigned=name == "int4",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["int4", "nvfp4", "h8", "w4a16"])
def test_tensors_and_facts_give_the_same_layer_back(name: str) -> None:
    layer = make(name)
    again = layer_from_tensors(layer.tensors(), layer.facts(), "x")
    assert torch.equal(again.codes, layer.codes) and torch.equal(again.weight(), layer.weight())
    assert again.unsigned == layer.unsigned and again.rank == 3
    assert {key: tensor.shape for key, tensor in again.tensors().items()} == {
        key: tensor.shape for key, tensor in layer.tensors().items()
    }


@pytest.mark.parametrize("name", ["int4", "nvfp4"])
def test_packing_takes_half_a_byte_a_code_and_keeps_contiguous_halves(name: str) -> None:
    form = FORMATS[name]
    low, high = (0, 16) if name == "nvfp4" else (-8, 8)
    codes = torch.randint(low, high, (3, 128), dtype=torch.int8)
    packed = pack_halves(codes, form)
    assert packed.shape == (3, 64) and torch.equal(unpack_halves(packed, form), codes)
    first = packed[:, : form.group // 2] & 15
    assert torch.equal(first.to(torch.int8) - (0 if name == "nvfp4" else 8), codes[:, : form.group // 2])


def test_missing_extra_and_misshapen_tensors_name_the_layer() -> None:
    layer = make("h8")
    tensors, facts = layer.tensors(), layer.facts()
    wrong = [
        {key: value for key, value in tensors.items() if key != "channel_scale"},
        tensors | {"surprise": torch.zeros(1)},
        tensors | {"codes": tensors["codes"][:, :-1]},
    ]
    for bad in wrong:
        with pytest.raises(FileError, match=r"blocks\.3"):
            layer_from_tensors(bad, facts, "blocks.3")
    with pytest.raises(FileError, match=r"blocks\.3"):
        layer_from_tensors(tensors, facts | {"format": "int3"}, "blocks.3")


def test_a_pure_linear_model_of_width_3072_is_below_three_tenths_of_bf16() -> None:
    dim, rank = 3072, 32
    for name in ("int4", "h8"):
        codes = torch.zeros(dim, dim, dtype=torch.int8)
        _, scales = encode_weight(torch.zeros(dim, 64), FORMATS[name])
        scales.group.resize_(dim, dim // 64)
        layer = QuantizedLayer(
            format=name, shape=(dim, dim), codes=codes, scales=scales, smooth=torch.ones(dim).bfloat16(),
            down=torch.zeros(rank, dim).bfloat16(), up=torch.zeros(dim, rank).bfloat16(),
        )  # fmt: skip
        assert layer.byte_count() <= 0.30 * dim * dim * 2


@pytest.mark.parametrize(
    "facts",
    [
        5, {}, {"format": "int4"}, {"format": "int4", "shape": ["a", None]},
        {"format": "int4", "shape": [0, 64]}, {"format": "int4", "shape": [4, 64], "rank": "many"},
        {"format": "int4", "shape": [4, 64], "rank": -1},
    ],
)  # fmt: skip
def test_facts_of_other_types_are_refused_by_the_layers_name(facts: object) -> None:
    with pytest.raises(FileError, match=r"'blocks\.3\.q': bad facts"):
        layer_from_tensors({}, facts, "blocks.3.q")
