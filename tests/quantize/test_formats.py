import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.quantize.formats import (
    E2M1,
    FORMATS,
    Scales,
    decode_weight,
    e2m1_codes,
    e2m1_values,
    encode_weight,
    expand_h8,
    int8_rows,
    nearest_codes,
    pick_format,
    round_activations,
    round_weight,
    to_e4m3,
    weight_scales,
)

WEIGHT_FORMATS = ["int4", "nvfp4", "h8"]


def test_an_unknown_format_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match=r"int3.*int4, nvfp4, h8"):
        pick_format("int3")


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
@pytest.mark.parametrize("width", [1, 5, 64, 123, 256])
def test_rounding_twice_changes_nothing_and_errors_stay_below_half_a_step(name: str, width: int) -> None:
    weight = torch.randn(7, width, generator=torch.Generator().manual_seed(width))
    form = FORMATS[name]
    codes, scales = encode_weight(weight, form, torch.float32)
    rounded = decode_weight(codes, scales, form, width)
    step = scales.effective().repeat_interleave(form.group, dim=1)[:, :width]
    # half of the widest gap of the grid; h8 may clip a little and e4m3 scales may round down by 1/16
    half = {"int4": 0.5, "nvfp4": 1.5, "h8": 3.0}[name]
    assert ((rounded - weight).abs() <= half * step + 1e-6).all()
    again = nearest_codes(rounded / step, form)
    assert torch.equal(again, codes[:, :width])


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_zero_weights_and_zero_groups_stay_exactly_zero(name: str) -> None:
    form = FORMATS[name]
    weight = torch.zeros(3, 128)
    assert torch.equal(round_weight(weight, form), weight)
    weight[:, 64:] = torch.randn(3, 64)
    rounded = round_weight(weight, form)
    assert torch.equal(rounded[:, :64], weight[:, :64]) and rounded[:, 64:].any()


def test_int4_scale_is_the_peak_over_seven_in_sixteen_bits() -> None:
    weight = torch.randn(5, 128)
    scales = weight_scales(weight, FORMATS["int4"], torch.bfloat16)
    expected = (weight.unflatten(1, (2, 64)).abs().amax(2) / 7).bfloat16()
    assert scales.group.dtype == torch.bfloat16 and torch.equal(scales.group, expected)


def test_nvfp4_group_scales_never_overflow_and_reach_the_top() -> None:
    weight = torch.randn(5, 64) * torch.logspace(-6, 6, 5)[:, None]
    scales = weight_scales(weight, FORMATS["nvfp4"])
    assert torch.isfinite(scales.group.float()).all() and scales.group.float().max() == 448


def test_h8_weights_fit_int8_and_the_search_beats_the_plain_multiplier() -> None:
    weight = torch.randn(16, 256) * torch.rand(256) ** 3
    form = FORMATS["h8"]
    codes, scales = encode_weight(weight, form)
    assert scales.group.min() >= 1 and scales.group.max() <= 18 and codes.abs().max() <= 7
    groups = weight.unflatten(1, (4, 64))
    plain = torch.round(groups.abs().amax(2) / (7 * scales.channel[:, None])).clamp(1, 18)
    step = (plain * scales.channel[:, None])[:, :, None]
    plain_error = (torch.round(groups / step).clamp(-7, 7) * step - groups).square().sum()
    assert (decode_weight(codes, scales, form, 256) - weight).square().sum() <= plain_error


def test_h8_expansion_formula_equals_code_times_multiplier_for_every_pair() -> None:
    stored = torch.arange(1, 16, dtype=torch.uint8).repeat_interleave(4)
    for multiplier in range(1, 19):
        expected = (stored.int() - 8) * multiplier
        assert torch.equal(expand_h8(stored, multiplier).int(), expected)


def test_e2m1_ties_follow_the_hardware_for_activations_and_the_converter_for_weights() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    even = e2m1_values(e2m1_codes(ties, ties="even"))
    lower = e2m1_values(e2m1_codes(ties, ties="lower"))
    assert even.tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert lower.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4]
    assert torch.equal(e2m1_values(e2m1_codes(-ties, ties="even")), -even)


def test_e2m1_takes_the_nearest_value_and_saturates() -> None:
    values = torch.linspace(-9, 9, 1801)
    table = torch.tensor([*E2M1, *(-v for v in E2M1)])
    for ties in ("even", "lower"):
        chosen = e2m1_values(e2m1_codes(values, ties=ties))
        best = (values[:, None] - table).abs().amin(dim=1)
        assert torch.allclose((values - chosen).abs(), best, atol=1e-6)


def test_int8_rows_use_the_whole_range_and_survive_zero_rows() -> None:
    rows = torch.randn(5, 33)
    rows[2] = 0
    codes, scale = int8_rows(rows)
    assert codes.abs().amax(1).tolist() == [127, 127, 0, 127, 127] and scale[2] == 1
    assert ((codes * scale[:, None] - rows).abs() <= scale[:, None] / 2 + 1e-7).all()
    assert int8_rows(torch.zeros(0, 8))[0].shape == (0, 8)


@pytest.mark.parametrize("name", ["int4", "nvfp4", "h8", "w4a16"])
@pytest.mark.parametrize("shape", [(0, 64), (1, 1), (5, 123)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_activations_of_odd_shapes_keep_their_shape_and_order_of_size(
    name: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(shape).to(dtype)
    rounded = round_activations(inputs, FORMATS[name])
    assert rounded.shape == inputs.shape and rounded.dtype == torch.float32
    if inputs.numel():
        assert (rounded - inputs).abs().max() <= 0.2 * inputs.abs().max()


def test_unsigned_activations_halve_the_error_on_gelu_data() -> None:
    from fewer.quantize.formats import GELU_SHIFT

    hidden = torch.nn.functional.gelu(torch.randn(64, 256), approximate="tanh")
    form = FORMATS["int4"]
    signed = (round_activations(hidden, form) - hidden).norm()
    shifted = round_activations(hidden + GELU_SHIFT, form, unsigned=True) - GELU_SHIFT
    assert hidden.min() + GELU_SHIFT >= 0
    assert (shifted - hidden).norm() <= 0.6 * signed


def test_engine_scale_rounding_differs_in_single_codes_only() -> None:
    inputs = torch.randn(32, 256)
    for name in ("int4", "nvfp4"):
        form = FORMATS[name]
        reference = round_activations(inputs, form)
        engine = round_activations(inputs, form, scale_rounding="engine")
        assert (reference != engine).float().mean() < 0.1
        assert ((reference - engine).norm() / inputs.norm()) < 0.1


def test_e4m3_saturates_instead_of_giving_nan() -> None:
    assert to_e4m3(torch.tensor([1e6, -1e6, 448.0])).float().tolist() == [448, -448, 448]


def test_effective_scales_multiply_both_levels() -> None:
    scales = Scales(torch.tensor([[2, 3]], dtype=torch.uint8), torch.tensor([0.5]))
    assert scales.effective().tolist() == [[1.0, 1.5]]
