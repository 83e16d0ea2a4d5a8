"""What a quantized layer cost, measured against its 16-bit weight: the lines of the report."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.linear import QuantizedLinear, reference_product
from fewer.quantize.parts import Samples, panel_slices

INPUTS = 2**19  # numbers of the input that are worked on at once


@dataclass(slots=True)
class LayerReport:
    """What one layer's quantization cost: the line of the report."""

    name: str
    shape: tuple[int, int]
    method: str
    error: float | None
    """||Y - Y'|| / ||Y|| on the calibration rows; None without calibration."""
    weight_error: float
    """||W - W'|| / ||W||."""
    alpha: float = 0.0
    beta: float = 0.0
    rounds: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def report_of(
    name: str, layer: QuantizedLayer, weight: Tensor, bias: Tensor | None, samples: Samples | None
) -> LayerReport:
    """The line of one layer, with the search's own figures left at their defaults."""
    return LayerReport(
        name=name,
        shape=layer.shape,
        method=layer.format,
        error=None if samples is None else layer_error(layer, weight, bias, samples.rows),
        weight_error=weight_error(layer, weight),
        bytes_before=2 * (weight.numel() + (0 if bias is None else bias.numel())),
        bytes_after=layer.byte_count(),
    )


def weight_error(layer: QuantizedLayer, weight: Tensor) -> float:
    """||W - W'|| / ||W||, a few rows at a time."""
    squared, whole = torch.zeros(2, device=weight.device).unbind()
    for rows in panel_slices(weight):
        exact = weight[rows].float()
        squared += layer.some_rows(rows).weight().sub_(exact).square_().sum()
        whole += exact.square().sum()
    return (squared.sqrt() / whole.sqrt().clamp_min(1e-30)).item()


def layer_error(layer: QuantizedLayer, weight: Tensor, bias: Tensor | None, rows: Tensor) -> float:
    """||Y - Y'|| / ||Y|| of a quantized layer against its 16-bit weight on given input rows."""
    if not len(rows):
        return 0.0
    squared, whole = torch.zeros(2, device=weight.device).unbind()
    for outputs in panel_slices(weight, times=2):
        own_bias = None if bias is None else bias[outputs].float()
        quantized, exact_weight = QuantizedLinear(layer.some_rows(outputs)), weight[outputs].float()
        height = len(rows) if rows.is_cuda else max(1, INPUTS // max(1, rows.shape[1]))
        for chunk in rows.to(weight.device).split(height):
            inputs = chunk.float()
            exact = torch.nn.functional.linear(inputs, exact_weight, own_bias)
            squared += (reference_product(quantized, inputs) - exact).square_().sum()
            whole += exact.square_().sum()
    return (squared.sqrt() / whole.sqrt().clamp_min(1e-30)).item()
