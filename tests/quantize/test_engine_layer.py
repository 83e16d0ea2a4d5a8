import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.quantize.engine_layer import (
    join_rows,
    pack_layer,
    pack_modulation,
    split_rows,
    unpack_layer,
    unpack_modulation,
)
from fewer.quantize.formats import FORMATS
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.parts import Part, Samples
from fewer.quantize.recipe import Recipe
from fewer.quantize.solve import solve_group, weight_only


def solved(
    form: str, *sizes: int, dim: int = 64, rank: int = 4, dtype: torch.dtype = torch.bfloat16
) -> list[QuantizedLayer]:
    torch.manual_seed(0)
    names = tuple(f"layer{index}" for index in range(len(sizes)))
    rows = torch.randn(64, dim) * (1 + 3 * torch.rand(dim))
    part = Part(
        names, [torch.randn(size, dim).to(dtype) for size in sizes],
        [torch.randn(size).to(dtype) for size in sizes],
        Samples(rows, rows.abs().amax(0)),
    )  # fmt: skip
    layers, _ = solve_group([part], FORMATS[form], rank, Recipe(grid=3, refine_rounds=1))
    return list(layers.values())


def same(first: QuantizedLayer, second: QuantizedLayer) -> bool:
    one, two = first.tensors(), second.tensors()
    return set(one) == set(two) and all(
        torch.equal(one[key].float(), two[key].float()) and one[key].dtype == two[key].dtype for key in one
    )


@pytest.mark.parametrize("form", ["int4", "nvfp4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("out", "dim", "rank"), [(5, 123, 1), (1, 64, 0), (128, 128, 16), (130, 257, 33)])
def test_packing_round_trips_bit_for_bit_with_odd_sizes(
    form: str, dtype: torch.dtype, out: int, dim: int, rank: int
) -> None:
    layer = solved(form, out, dim=dim, rank=min(rank, out), dtype=dtype)[0]
    tensors = pack_layer(layer, "a")
    assert tensors["qweight"].shape[0] % 128 == 0 and tensors["proj_up"].shape[1] % 16 == 0
    again = unpack_layer(tensors, layer.facts(), "a")
    assert same(again, layer)
    second = pack_layer(again, "a")
    assert all(torch.equal(tensors[key].float(), second[key].float()) for key in tensors)


@pytest.mark.parametrize("splits", [1, 3, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_modulation_layers_round_trip_and_carry_the_one_of_the_scale_chunks(splits: int, bias: bool) -> None:
    weight = torch.randn(24, 64).bfloat16()
    layer = weight_only("n", weight, torch.zeros(24).bfloat16() if bias else None, FORMATS["w4a16"], Recipe())
    tensors = pack_modulation(layer, splits, "n")
    assert same(unpack_modulation(tensors, splits, "n"), layer)
    if bias:
        assert int(tensors["bias"].sum()) == {1: 0, 3: 8, 6: 8}[splits]
    scale, zero = tensors["wscales"].float(), tensors["wzeros"].float()
    assert torch.equal(zero, -7 * scale.bfloat16().float().bfloat16().float()) or torch.allclose(
        zero, -7 * scale, rtol=0.01
    )


def test_joined_rows_split_into_what_they_were() -> None:
    for form in ("int4", "nvfp4"):
        layers = solved(form, 5, 8)
        joined = join_rows(layers)
        assert joined.shape == (13, 64) and all(map(same, split_rows(joined, [5, 8]), layers))


def test_formats_and_sizes_the_engine_does_not_have_name_the_layer() -> None:
    with pytest.raises(ConfigError, match=r"'x' is h8"):
        pack_layer(solved("h8", 8)[0], "x")
    with pytest.raises(ConfigError, match=r"'x' is 8 x 64"):
        pack_layer(solved("int4", 8)[0], "x", pad=False)
    with pytest.raises(ConfigError, match=r"'x' is 5 x 64"):
        pack_modulation(weight_only("x", torch.randn(5, 64), None, FORMATS["w4a16"], Recipe()), 1, "x")


def test_incomplete_and_misfitting_tensors_name_the_layer() -> None:
    layer = solved("int4", 8)[0]
    tensors, facts = pack_layer(layer, "b"), layer.facts()
    for bad, other in [
        ({k: v for k, v in tensors.items() if k != "wscales"}, facts),
        (tensors | {"wscales": tensors["wscales"][:1]}, facts),
        (tensors | {"odd": torch.zeros(1)}, facts),
        (tensors, facts | {"format": "nvfp4"}),
        (tensors | {"wscales": tensors["wscales"].to(torch.float8_e4m3fn)}, facts),
    ]:
        with pytest.raises(FileError, match="'b'"):
            unpack_layer(bad, other, "b")
    with pytest.raises(FileError, match="'b' lacks"):
        unpack_modulation({}, 1, "b")
