import itertools
from types import ModuleType

import pytest
import torch

from fewer.core.errors import ConfigError, DataError
from fewer.quantize.formats import FORMATS
from fewer.quantize.measure import layer_error
from fewer.quantize.parts import Part, Samples
from fewer.quantize.recipe import FAST, Recipe
from fewer.quantize.solve import solve_group, weight_only

QUICK = Recipe(grid=4, refine_rounds=2)


def samples(rows: torch.Tensor) -> Samples:
    return Samples(rows, rows.abs().amax(dim=0))


def test_the_published_ratios_hold_on_a_layer_with_outliers(bench: ModuleType) -> None:
    error = lambda form, rank, **choices: bench.held_out_error(0, form, rank, **choices)  # noqa: E731
    best, losses = error("int4", 32)
    one_shot, _ = error("int4", 32, refine_rounds=1)
    assert best <= 0.22 * error("int4", 0, smooth=False)[0]
    assert best <= 0.45 * error("int4", 0)[0]
    assert best <= 0.40 * error("int4", 32, smooth=False, refine_rounds=1)[0]
    assert best <= 0.93 * one_shot
    # the fast recipe costs a few per cent only
    assert error("int4", 32, grid=FAST.grid, refine_rounds=FAST.refine_rounds)[0] <= 1.1 * best
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))
    assert error("nvfp4", 32)[0] <= 0.85 * best
    h8 = error("h8", 32)[0]
    assert h8 <= 0.75 * best and h8 <= 1.0 * error("w4a8", 32)[0]


def test_error_falls_strictly_with_rank(bench: ModuleType) -> None:
    errors = [bench.held_out_error(1, "int4", rank, refine_rounds=1)[0] for rank in (16, 32, 64)]
    assert errors[0] > errors[1] > errors[2]


def test_gptq_on_top_of_svdquant_lowers_the_error_on_correlated_inputs() -> None:
    torch.manual_seed(0)
    mix = torch.randn(64, 64) / 8 + torch.eye(64)
    rows, held_out, weight = torch.randn(1024, 64) @ mix, torch.randn(256, 64) @ mix, torch.randn(48, 64)
    errors = []
    for gptq in (False, True):
        recipe = Recipe(grid=4, refine_rounds=1, gptq=gptq)
        layers, _ = solve_group([Part(("a",), [weight], [None], samples(rows))], FORMATS["h8"], 8, recipe)
        errors.append(layer_error(layers["a"], weight, None, held_out))
    assert errors[1] < 0.9 * errors[0]


def test_layers_of_a_part_share_scales_and_down_projection_and_parts_share_scales_only() -> None:
    torch.manual_seed(0)
    rows = samples(torch.randn(64, 64) * (1 + 9 * torch.rand(64)))
    first = Part(("q", "k"), [torch.randn(32, 64), torch.randn(48, 64)], [torch.randn(32), None], rows)
    second = Part(("mlp",), [torch.randn(96, 64)], [None], rows)
    layers, reports = solve_group([first, second], FORMATS["int4"], 8, QUICK)
    assert torch.equal(layers["q"].down, layers["k"].down) and not torch.equal(
        layers["q"].down, layers["mlp"].down
    )
    assert torch.equal(layers["q"].smooth, layers["mlp"].smooth)
    assert layers["q"].bias is not None and layers["k"].bias is None
    assert [report.name for report in reports] == ["q", "k", "mlp"] and all(r.error < 0.2 for r in reports)


def test_nvfp4_siblings_keep_one_scale_per_channel_so_that_they_can_be_stored_fused() -> None:
    parts = [Part(("q", "k"), [torch.randn(16, 32), 100 * torch.randn(16, 32)], [None, None])]
    layers, _ = solve_group(parts, FORMATS["nvfp4"], 0, QUICK)
    assert layers["q"].scales.channel.shape == (16,)
    assert torch.equal(layers["q"].scales.channel, layers["k"].scales.channel)


@pytest.mark.parametrize("rank", [0, 5])
def test_a_constant_input_after_gelu_adds_no_error_from_the_shift(rank: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(24, 64), torch.randn(24)
    hidden = torch.nn.functional.gelu(torch.randn(128, 64), approximate="tanh")
    part = Part(("fc2",), [weight], [bias], samples(hidden), unsigned=True)
    layers, _ = solve_group([part], FORMATS["int4"], rank, QUICK)
    signed, _ = solve_group([Part(("fc2",), [weight], [bias], samples(hidden))], FORMATS["int4"], rank, QUICK)
    assert layers["fc2"].unsigned and layer_error(layers["fc2"], weight, bias, hidden) < 0.8 * layer_error(
        signed["fc2"], weight, bias, hidden
    )
    without_bias, _ = solve_group(
        [Part(("x",), [weight], [None], None, unsigned=True)], FORMATS["int4"], rank, QUICK
    )
    assert without_bias["x"].bias is not None, "the shift needs a bias even where there was none"


@pytest.mark.parametrize("form", ["int4", "nvfp4", "h8"])
def test_all_zero_weights_and_channels_work(form: str) -> None:
    weight, rows = torch.randn(16, 64), torch.randn(64, 64)
    weight[:, 3], rows[:, 5] = 0, 0
    for candidate in (weight, torch.zeros(16, 64)):
        layers, _ = solve_group([Part(("a",), [candidate], [None], samples(rows))], FORMATS[form], 4, QUICK)
        assert torch.isfinite(layers["a"].weight()).all()
        assert layer_error(layers["a"], candidate, None, rows) < 0.2


def test_bad_weights_ranks_and_samples_name_the_layer() -> None:
    good = torch.randn(16, 64)
    bad = good.clone()
    bad[1, 1] = float("nan")
    with pytest.raises(DataError, match=r"'fc'.*NaN"):
        solve_group([Part(("fc",), [bad], [None])], FORMATS["int4"], 4, QUICK)
    with pytest.raises(ConfigError, match=r"rank 17.*'fc'"):
        solve_group([Part(("fc",), [good], [None])], FORMATS["int4"], 17, QUICK)
    with pytest.raises(DataError, match=r"inputs of layer 'fc'"):
        solve_group(
            [Part(("fc",), [good], [None], Samples(bad, bad.abs().amax(0)))], FORMATS["int4"], 4, QUICK
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weight_only_layers_have_no_scales_on_inputs_and_no_branch(dtype: torch.dtype) -> None:
    weight = torch.randn(12, 123).to(dtype)
    layer = weight_only("norm.linear", weight, torch.randn(12).to(dtype), FORMATS["w4a16"], Recipe())
    assert layer.smooth is None and layer.rank == 0 and layer.bias.dtype == dtype
    assert (layer.weight() - weight.float()).norm() < 0.15 * weight.float().norm()


@pytest.mark.parametrize("form", ["int4", "nvfp4", "h8"])
def test_nearly_dead_channels_do_not_leave_the_range_of_fp16(form: str) -> None:
    weight, rows = torch.randn(48, 64) / 8, torch.randn(96, 64)
    weight[:, 5], rows[:, 5] = 1e-7, 300 * rows[:, 5]
    rows[:, 7] = 1e-7
    weight[:, 9], rows[:, 9] = 30 * weight[:, 9], 2e4 * rows[:, 9].sign()
    part = Part(("a",), [weight.half()], [None], samples(rows.half()))
    layers, _ = solve_group([part], FORMATS[form], 4, QUICK)
    kept = layers["a"].tensors()
    assert all(torch.isfinite(tensor.float()).all() for tensor in kept.values())
    assert (kept["smooth"] > 0).all() and layer_error(layers["a"], weight, None, rows) < 0.01
