import dataclasses

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.quantize.formats import FORMATS, encode_weight, int8_rows
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.linear import (
    Adapter,
    QuantizedLinear,
    fused_h8_product,
    h8_product,
    integer_product,
    reference_product,
)


def make(name: str, out: int = 37, dim: int = 123, **changes: object) -> QuantizedLayer:
    codes, scales = encode_weight(torch.randn(out, dim), FORMATS[name])
    values = {"format": name, "shape": (out, dim), "codes": codes, "scales": scales} | changes
    return QuantizedLayer(**values)


@pytest.mark.parametrize("name", ["int4", "nvfp4", "h8", "w4a16"])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_the_output_is_the_dense_weight_up_to_the_rounding_of_activations(name: str, rows: int) -> None:
    torch.manual_seed(0)
    layer = make(name, smooth=torch.rand(123) + 0.5, bias=torch.randn(37))
    linear, inputs = QuantizedLinear(layer), torch.randn(2, rows, 123)
    exact = torch.nn.functional.linear(inputs, layer.weight(), layer.bias)
    bound = {"int4": 0.2, "nvfp4": 0.2, "h8": 0.02, "w4a16": 1e-5}[name]
    assert linear(inputs).shape == (2, rows, 37)
    assert (linear(inputs) - exact).norm() <= bound * exact.norm() + 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_output_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    assert QuantizedLinear(make("h8"))(torch.randn(3, 123, dtype=dtype)).dtype == dtype


def test_h8_accumulators_equal_big_integer_sums_bit_for_bit() -> None:
    torch.manual_seed(1)
    layer = make("h8", 19, 300)
    inputs = torch.randn(9, 300)
    codes, scale = int8_rows(inputs)
    weight = layer.codes.long().unflatten(1, (-1, 64)) * layer.scales.group.long()[:, :, None]
    padded = torch.nn.functional.pad(codes.long(), (0, 20))
    accumulator = padded @ weight.flatten(1).mT
    found = integer_product(padded.to(torch.int8), weight.flatten(1).to(torch.int8))
    assert torch.equal(found.long(), accumulator)
    expected = accumulator.float() * scale[:, None] * layer.scales.channel
    assert torch.equal(h8_product(inputs, layer.codes, layer.scales, 64), expected)


def test_a_pointwise_convolution_gives_the_same_as_the_linear_on_moved_axes() -> None:
    layer = make("int4", 37, 64)
    image = torch.randn(2, 64, 3, 5)
    convolution = QuantizedLinear(dataclasses.replace(layer, convolution=True))(image)
    linear = QuantizedLinear(layer)(image.movedim(1, -1)).movedim(-1, 1)
    assert convolution.shape == (2, 37, 3, 5) and torch.equal(convolution, linear)


def test_a_wrong_width_names_the_layer() -> None:
    with pytest.raises(ConfigError, match=r"blocks\.1.*123 channels"):
        QuantizedLinear(make("int4"), name="blocks.1")(torch.randn(2, 7))


def test_the_branch_acts_on_the_unsmoothed_input_and_adapters_append_ranks() -> None:
    down, up = torch.randn(4, 123), torch.randn(37, 4)
    plain = QuantizedLinear(
        make("h8", codes=torch.zeros(37, 128, dtype=torch.int8), smooth=torch.full((123,), 3.0))
    )
    plain.low_down, plain.low_up = down, up
    inputs = torch.randn(6, 123)
    assert torch.allclose(plain(inputs), inputs @ down.mT @ up.mT, rtol=1e-5, atol=1e-4)
    plain.adapters["a"] = Adapter(torch.ones(1, 123), torch.ones(37, 1), 0.5)
    extra = plain(inputs) - inputs @ down.mT @ up.mT
    assert torch.allclose(extra, 0.5 * inputs.sum(1, keepdim=True).expand(6, 37), rtol=1e-3, atol=1e-3)


def test_its_layer_and_state_are_what_was_put_in() -> None:
    layer = make("nvfp4", bias=torch.randn(37))
    linear = QuantizedLinear(layer)
    assert torch.equal(linear.layer.codes, layer.codes) and torch.equal(linear.weight, layer.weight())
    assert set(linear.state_dict()) == {"codes", "group_scale", "channel_scale", "bias"}
    assert "123 -> 37, nvfp4, rank 0" in repr(linear)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("dim", [64, 123])
def test_the_kernels_path_equals_the_reference(rank: int, dim: int) -> None:
    torch.manual_seed(0)
    changes = {"down": torch.randn(rank, dim), "up": torch.randn(37, rank)} if rank else {}
    layer = make("h8", 37, dim, smooth=torch.rand(dim) + 0.5, bias=torch.randn(37), **changes)
    linear, rows = QuantizedLinear(layer), torch.randn(9, dim)
    reference, fused = reference_product(linear, rows), fused_h8_product(linear, rows)
    assert (fused - reference).norm() <= 1e-5 * reference.norm()


@pytest.mark.parametrize("name", ["int4", "nvfp4", "h8", "w4a16"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_a_model_moves_adapters_and_leaves_number_formats(name: str, dtype: torch.dtype) -> None:
    """Scales of eight bits, or beyond the range of fp16, are no scales in sixteen bits."""
    smooth = torch.rand(123) + 0.5
    linear = QuantizedLinear(make(name, smooth=smooth, bias=torch.randn(37), **branch_of(3)))
    linear.adapters["style"] = Adapter(torch.randn(2, 123), torch.randn(37, 2), 0.5)
    inputs = torch.randn(5, 123).to(dtype)
    before, expected = dict(linear.named_buffers()), linear(inputs)
    linear.to(dtype)
    assert all(torch.equal(tensor.float(), before[key].float()) for key, tensor in linear.named_buffers())
    assert all(tensor.dtype == before[key].dtype for key, tensor in linear.named_buffers())
    assert torch.equal(linear(inputs), expected)
    linear.to("meta", dtype)
    assert linear.adapters["style"].down.is_meta and linear.codes.is_meta
    assert linear.group_scale.dtype == before["group_scale"].dtype


def branch_of(rank: int) -> dict[str, torch.Tensor]:
    return {"down": torch.randn(rank, 123), "up": torch.randn(37, rank)}


def test_one_picture_without_a_batch_goes_through_a_pointwise_convolution() -> None:
    linear = QuantizedLinear(make("h8", convolution=True))
    picture = torch.randn(123, 5, 123)
    assert torch.equal(linear(picture), linear(picture[None])[0])
