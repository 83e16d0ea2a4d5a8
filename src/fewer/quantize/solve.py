"""One group of layers: 16-bit weights and sampled inputs in, quantized layers and what they cost out.

The order of the work is the order of the code: smoothing scales for the whole group (`_smoothing`), then for
each part the low-rank branch refined against the rounded residual (`_branch`), then the codes (`_encode`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.quantize import gptq, smooth
from fewer.quantize.formats import (
    GELU_SHIFT,
    Format,
    Scales,
    decode_weight,
    encode_weight,
    round_activations,
    round_weight,
)
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.lowrank import Branch, check_rank, randomized_svd, refine, truncated_svd
from fewer.quantize.recipe import Recipe

EXACT_SVD_UP_TO = 512  # channels; above it the randomised SVD gives the same image quality 18 times faster
CHUNK = 128  # rows per product when a loss is computed, so that no full output is ever held


@dataclass(frozen=True, slots=True)
class Samples:
    """What calibration kept of one layer's input."""

    rows: Float[Tensor, "rows dim"]
    """A uniform sample of the input's rows."""
    peak: Float[Tensor, "dim"]
    """Largest magnitude of each channel over *all* rows seen."""


@dataclass(slots=True)
class Part:
    """Layers that read one input and share one low-rank branch (q, k and v, or a single layer)."""

    names: tuple[str, ...]
    weights: list[Float[Tensor, "_ dim"]]
    biases: list[Float[Tensor, "_"] | None]
    samples: Samples | None = None
    unsigned: bool = False

    @property
    def weight(self) -> Float[Tensor, "out dim"]:
        """All weights of the part below each other, in fp32: a new tensor each time."""
        rows = sum(len(weight) for weight in self.weights)
        joined = torch.empty(rows, self.weights[0].shape[1], device=self.weights[0].device)
        for piece, weight in zip(
            joined.split([len(weight) for weight in self.weights]), self.weights, strict=True
        ):
            piece.copy_(weight)
        return joined

    def column_peak(self) -> Float[Tensor, "dim"]:
        """Largest magnitude of each input channel."""
        peaks = [torch.linalg.vector_norm(weight, ord=torch.inf, dim=0) for weight in self.weights]
        return torch.stack(peaks).amax(dim=0).float()


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


Candidate = dict[
    str, tuple[Tensor, Tensor, Tensor]
]  # layer name -> (rounded residual, branch product, scales)
BlockLoss = Callable[[Candidate], float]


def solve_group(
    parts: list[Part], form: Format, rank: int, recipe: Recipe, block_loss: BlockLoss | None = None
) -> tuple[dict[str, QuantizedLayer], list[LayerReport]]:
    """Quantizes the layers of all parts with one shared vector of smoothing scales.

    `block_loss` compares a whole block's output for a candidate instead of the layers' own outputs.
    Raises `ConfigError` (rank) or `DataError` (not finite, too few rows for GPTQ), each naming the layer.
    """
    began = time.perf_counter()
    for part in parts:
        _check(part, rank)
    scales, trial = _smoothing(parts, form, rank, recipe, block_loss)
    layers: dict[str, QuantizedLayer] = {}
    reports: list[LayerReport] = []
    for part in parts:
        branch = _branch(part, scales, form, rank, recipe, block_loss)
        made = _encode(part, branch, scales, form, recipe)
        layers |= made
        reports += [_report(part, name, made[name], branch, trial) for name in part.names]
    for report in reports:
        report.seconds = (time.perf_counter() - began) / len(reports)
    return layers, reports


def weight_only(
    name: str, weight: Tensor, bias: Tensor | None, form: Format, recipe: Recipe
) -> QuantizedLayer:
    """Round-to-nearest 4-bit weight with 16-bit activations, no scales on inputs, no branch (modulation
    layers).
    """
    part = Part((name,), [weight], [bias])
    _check(part, 0)
    dim = weight.shape[1]
    return _encode(
        part, Branch(weight.new_zeros(len(weight), 0), weight.new_zeros(0, dim)), None, form, recipe
    )[name]


def _check(part: Part, rank: int) -> None:
    for name, weight in zip(part.names, part.weights, strict=True):
        check_rank(rank, tuple(weight.shape), name)
        if not torch.isfinite(weight).all():
            raise DataError(f"the weight of layer {name!r} has NaN or Inf; repair the checkpoint first")
    if part.samples is not None and not torch.isfinite(part.samples.rows).all():
        raise DataError(f"the calibration inputs of layer {part.names[0]!r} have NaN or Inf; check the data")


def _smoothing(
    parts: list[Part], form: Format, rank: int, recipe: Recipe, block_loss: BlockLoss | None
) -> tuple[Tensor | None, smooth.Trial | None]:
    """The group's scales, rounded to the format they are stored in, and the winning trial."""
    samples = [part.samples for part in parts if part.samples is not None and len(part.samples.rows)]
    if not recipe.smooth or form.activation == "none" or len(samples) < len(parts):
        return None, None
    activation_peak = torch.stack([sample.peak.float() for sample in samples]).amax(dim=0)
    weight_peak = torch.stack([part.column_peak() for part in parts]).amax(dim=0)
    starts: list[Tensor | None] = [None] * len(parts)
    generator = seeded(recipe.seed, 1)

    def error(scales: Tensor) -> float:
        total, candidate = 0.0, {}
        for index, part in enumerate(parts):
            residual = part.weight.mul_(scales)
            # consecutive candidates have nearly the same leading directions: one warm iteration is enough
            warm = starts[index]
            branch = randomized_svd(
                residual, rank, iterations=4 if warm is None else 1, generator=generator, start=warm
            )
            starts[index] = _warm_start(branch, generator)
            residual.addmm_(branch.up, branch.down, alpha=-1)
            rounded = round_weight(residual, form, _scale_dtype(part, recipe))
            if block_loss is None:
                total += _output_loss(part, scales, residual, rounded, form, recipe)
            else:
                candidate |= _split(part, rounded, branch.product(), scales)
        return total if block_loss is None else block_loss(candidate)

    scales, trials = smooth.search(activation_peak, weight_peak, error, recipe.grid)
    least = min(trial.error for trial in trials)
    winner = [trial for trial in trials if trial.error <= least][-1]
    return scales.to(recipe.storage_dtype(parts[0].weights[0].dtype)), winner


def _branch(
    part: Part, scales: Tensor | None, form: Format, rank: int, recipe: Recipe, block_loss: BlockLoss | None
) -> Branch:
    """The refined branch of one part, on the smoothed weight."""
    weight = part.weight
    factor = torch.ones(weight.shape[1], device=weight.device) if scales is None else scales.float()
    smoothed = weight.mul_(factor)
    exact = recipe.svd == "exact" or (recipe.svd == "auto" and min(weight.shape) <= EXACT_SVD_UP_TO)
    generator = seeded(recipe.seed, 2)
    start: list[Tensor | None] = [None]

    def decompose(matrix: Tensor) -> Branch:
        if exact:
            return truncated_svd(matrix, rank)
        warm = start[0]
        branch = randomized_svd(
            matrix, rank, iterations=6 if warm is None else 2, generator=generator, start=warm
        )
        start[0] = _warm_start(branch, generator)
        return branch

    def loss(branch: Branch, rounded: Tensor) -> float:
        if block_loss is not None:
            return block_loss(_split(part, rounded, branch.product(), factor))
        residual = torch.addmm(smoothed, branch.up, branch.down, alpha=-1)
        return _output_loss(part, factor, residual, rounded, form, recipe)

    dtype = _scale_dtype(part, recipe)
    measured = loss if part.samples is not None and len(part.samples.rows) else None
    return refine(smoothed, decompose, lambda r: round_weight(r, form, dtype), measured, recipe.refine_rounds)


def _encode(
    part: Part, branch: Branch, scales: Tensor | None, form: Format, recipe: Recipe
) -> dict[str, QuantizedLayer]:
    """Stores the branch in 16 bits, then rounds what is left of the weight, so the branch's rounding is
    absorbed.
    """
    storage = recipe.storage_dtype(part.weights[0].dtype)
    weight = part.weight
    factor = torch.ones(weight.shape[1], device=weight.device) if scales is None else scales.float()
    down, up = (branch.down / factor).to(storage), branch.up.to(storage)
    residual = weight.mul_(factor).addmm_(up.float(), down.float() * factor, alpha=-1)
    dtype = _scale_dtype(part, recipe)
    if recipe.gptq and part.samples is not None and form.activation != "none":
        inputs = _smoothed(part, factor, part.samples.rows)
        codes, grid = gptq.gptq(residual, inputs, form, dtype, part.names[0])
    else:
        codes, grid = encode_weight(residual, form, dtype)
    layers, row = {}, 0
    for name, own, bias in zip(part.names, part.weights, part.biases, strict=True):
        rows = slice(row, row + len(own))
        row += len(own)
        channel = None if grid.channel is None else grid.channel[rows].clone()
        layers[name] = QuantizedLayer(
            format=form.name,
            shape=(own.shape[0], own.shape[1]),
            codes=codes[rows].clone(),
            scales=Scales(grid.group[rows].clone(), channel),
            smooth=None if scales is None else scales.clone(),
            down=down.clone() if branch.down.shape[0] else None,
            up=up[rows].clone() if branch.down.shape[0] else None,
            bias=None if bias is None else bias.detach().to(storage),
            unsigned=part.unsigned,
        )
        if part.unsigned:
            _shift_bias(layers[name], factor, bias, storage)
    return layers


def _shift_bias(layer: QuantizedLayer, factor: Tensor, bias: Tensor | None, storage: torch.dtype) -> None:
    """b' = b - 11/64 sum_k W_k, with the *rounded* residual as W: a constant input adds no error at all."""
    residual = decode_weight(layer.codes, layer.scales, layer.form, layer.shape[1]) / factor
    shift = GELU_SHIFT * residual.sum(dim=1)
    layer.bias = ((0 if bias is None else bias.float()) - shift).to(storage)


def _smoothed(part: Part, factor: Tensor, rows: Tensor) -> Tensor:
    """What the quantizer of the activations sees."""
    inputs = rows.to(factor.device).float()
    return (inputs + GELU_SHIFT if part.unsigned else inputs) / factor


def _output_loss(
    part: Part,
    factor: Tensor,
    residual: Tensor,
    rounded: Tensor,
    form: Format,
    recipe: Recipe,
) -> float:
    """||Qa(x) Qw(R)^T + x L^T - x W^T||^2 = ||Qa(x) Qw(R)^T - x R^T||^2 over the sampled rows, x smoothed."""
    assert part.samples is not None
    total = 0.0
    for chunk in part.samples.rows.split(CHUNK):
        inputs = _smoothed(part, factor, chunk)
        rounded_inputs = round_activations(
            inputs, form, unsigned=part.unsigned, scale_dtype=_scale_dtype(part, recipe)
        )
        error = torch.addmm(rounded_inputs @ rounded.mT, inputs, residual.mT, alpha=-1)
        total += error.square().sum().item()
    return total


def _report(
    part: Part, name: str, layer: QuantizedLayer, branch: Branch, trial: smooth.Trial | None
) -> LayerReport:
    index = part.names.index(name)
    weight, bias = part.weights[index], part.biases[index]
    difference = layer.weight().sub_(weight).norm()
    return LayerReport(
        name=name,
        shape=layer.shape,
        method=layer.format,
        error=None if part.samples is None else layer_error(layer, weight, bias, part.samples.rows),
        weight_error=(difference / weight.float().norm().clamp_min(1e-30)).item(),
        alpha=trial.alpha if trial else 0.0,
        beta=trial.beta if trial else 0.0,
        rounds=len(branch.losses),
        bytes_before=2 * (weight.numel() + (0 if bias is None else bias.numel())),
        bytes_after=layer.byte_count(),
        losses=branch.losses,
    )


def layer_error(layer: QuantizedLayer, weight: Tensor, bias: Tensor | None, rows: Tensor) -> float:
    """||Y - Y'|| / ||Y|| of a quantized layer against its 16-bit weight on given rows."""
    from fewer.quantize.linear import QuantizedLinear

    if not len(rows):
        return 0.0
    inputs = rows.float().to(weight.device)
    exact = torch.nn.functional.linear(inputs, weight.float(), None if bias is None else bias.float())
    error = QuantizedLinear(layer)(inputs) - exact
    return (error.norm() / exact.norm().clamp_min(1e-30)).item()


def _split(part: Part, rounded: Tensor, product: Tensor, scales: Tensor) -> Candidate:
    sizes = [len(weight) for weight in part.weights]
    pieces = zip(part.names, rounded.split(sizes), product.split(sizes), strict=True)
    return {name: (own_rounded, own_product, scales) for name, own_rounded, own_product in pieces}


def _warm_start(branch: Branch, generator: torch.Generator) -> Tensor | None:
    rank, dim = branch.down.shape
    if not rank:
        return None
    extra = min(10, min(branch.up.shape[0], dim) - rank)
    noise = torch.randn(dim, extra, generator=generator).to(branch.down.device) / dim**0.5
    return torch.cat([branch.down.mT, noise], dim=1)


def _scale_dtype(part: Part, recipe: Recipe) -> torch.dtype:
    return recipe.scale_dtype(part.weights[0].dtype)
