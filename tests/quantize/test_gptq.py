import pytest
import torch

from fewer.core.errors import DataError
from fewer.quantize.formats import FORMATS, decode_weight, round_weight
from fewer.quantize.gptq import gptq


def correlated(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    """AR(1) inputs with coefficient 0.8, channels shuffled."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, dim, generator=generator)
    values = [noise[:, 0]]
    for column in range(1, dim):
        values.append(0.8 * values[-1] + 0.6 * noise[:, column])
    return torch.stack(values, dim=1)[:, torch.randperm(dim, generator=generator)]


@pytest.mark.parametrize("name", ["int4", "nvfp4", "h8"])
def test_on_correlated_inputs_it_beats_rounding_by_a_quarter_on_held_out_rows(name: str) -> None:
    torch.manual_seed(0)
    inputs, weight = correlated(4096, 256), torch.randn(96, 256)
    train, held_out, form = inputs[:2048], inputs[2048:], FORMATS[name]
    codes, scales = gptq(weight, train, form)
    error = ((decode_weight(codes, scales, form, 256) - weight) @ held_out.mT).norm()
    plain = ((round_weight(weight, form) - weight) @ held_out.mT).norm()
    assert error <= 0.75 * plain


def test_codes_stay_on_the_grid_and_odd_widths_are_padded() -> None:
    weight = torch.randn(5, 123)
    codes, scales = gptq(weight, torch.randn(300, 123), FORMATS["int4"])
    assert codes.shape == (5, 128) and scales.group.shape == (5, 2)
    assert codes.abs().max() <= 7 and not codes[:, 123:].any()


def test_dead_channels_get_weight_zero_and_do_no_harm() -> None:
    inputs = torch.randn(512, 64)
    inputs[:, 3] = 0
    codes, _ = gptq(torch.randn(8, 64), inputs, FORMATS["int4"])
    assert not codes[:, 3].any() and codes[:, 4:].any()


def test_too_few_rows_are_refused_with_the_layers_name() -> None:
    with pytest.raises(DataError, match=r"'ff\.2' has 100 calibration rows for 64 channels.*128"):
        gptq(torch.randn(4, 64), torch.randn(100, 64), FORMATS["int4"], name="ff.2")
