import pytest
import torch

from fewer.quantize import parts
from fewer.quantize.formats import FORMATS, encode_weight
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.linear import QuantizedLinear
from fewer.quantize.measure import layer_error, report_of, weight_error
from fewer.quantize.parts import Samples


@pytest.mark.parametrize("form", ["int4", "nvfp4", "h8", "w4a16"])
def test_errors_by_panels_are_the_errors_of_the_whole_layer(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parts.PANEL, "cpu", 16 * 80)
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(123, 80), torch.randn(123), torch.randn(30, 80)
    codes, scales = encode_weight(weight, FORMATS[form])
    layer = QuantizedLayer(format=form, shape=(123, 80), codes=codes, scales=scales, bias=bias)  # pyright: ignore
    exact = torch.nn.functional.linear(rows, weight, bias)
    expected = (QuantizedLinear(layer)(rows) - exact).norm() / exact.norm()
    assert layer_error(layer, weight, bias, rows) == pytest.approx(expected.item(), rel=1e-5)
    assert weight_error(layer, weight) == pytest.approx(
        ((layer.weight() - weight).norm() / weight.norm()).item(), rel=1e-5
    )
    report = report_of("fc", layer, weight, bias, Samples(rows, rows.abs().amax(0)))
    assert report.error == pytest.approx(expected.item(), rel=1e-5)
    assert report.bytes_before == 2 * (123 * 80 + 123)
    assert report_of("fc", layer, weight, bias, None).error is None
    assert layer_error(layer, weight, bias, rows[:0]) == 0
