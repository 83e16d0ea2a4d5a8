"""One group of layers: 16-bit weights and sampled inputs in, quantized layers and what they cost out.

The order of the work is the order of the code: smoothing scales for the whole group (`_smoothing`), then for
each part the low-rank branch refined against the rounded residual (`_branch`), then the codes (`_encode`).
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.quantize import gptq, smooth
from fewer.quantize.formats import GELU_SHIFT, Format, Scales, decode_weight
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.lowrank import Branch, WarmSvd, check_rank, in_range, refine, truncated_svd
from fewer.quantize.measure import LayerReport, report_of
from fewer.quantize.parts import Part, finite
from fewer.quantize.recipe import Recipe
from fewer.quantize.smoothed import SmoothedPart
from fewer.quantize.together import branches_together

EXACT_SVD_UP_TO = 256  # channels; above it the randomised SVD gives the same errors in half the time and less
TOGETHER_ON = ("cuda",)  # devices that are faster with the branches of all candidates in one batch

Candidate = dict[str, tuple[Tensor, Branch, Tensor | None]]
"""Layer name -> (its rounded residual, its rows of the branch, the smoothing scales)."""
BlockLoss = Callable[[Candidate], Tensor]


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
        smoothed = _smoothed(part, scales, form, recipe)
        branch = _branch(smoothed, rank, recipe, block_loss)
        made = _encode(smoothed, branch, recipe)
        layers |= made
        for name, weight, bias in zip(part.names, part.weights, part.biases, strict=True):
            report = report_of(name, made[name], weight, bias, part.samples)
            report.rounds, report.losses = len(branch.losses), branch.losses
            if trial is not None:
                report.alpha, report.beta = trial.alpha, trial.beta
            reports.append(report)
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
    nothing = Branch(weight.new_zeros(len(weight), 0).float(), weight.new_zeros(0, weight.shape[1]).float())
    return _encode(_smoothed(part, None, form, recipe), nothing, recipe)[name]


def _check(part: Part, rank: int) -> None:
    for name, weight in zip(part.names, part.weights, strict=True):
        check_rank(rank, tuple(weight.shape), name)
        if not finite(weight):
            raise DataError(f"the weight of layer {name!r} has NaN or Inf; repair the checkpoint first")
    if part.samples is not None and not finite(part.samples.rows):
        raise DataError(f"the calibration inputs of layer {part.names[0]!r} have NaN or Inf; check the data")


def _smoothed(part: Part, scales: Tensor | None, form: Format, recipe: Recipe) -> SmoothedPart:
    return SmoothedPart(part, scales, form, recipe.scale_dtype(part.weights[0].dtype))


def _smoothing(
    parts: list[Part], form: Format, rank: int, recipe: Recipe, block_loss: BlockLoss | None
) -> tuple[Tensor | None, smooth.Trial | None]:
    """The group's scales, rounded to the format they are stored in, and the winning trial."""
    samples = [part.samples for part in parts if part.samples is not None and part.sampled]
    if not recipe.smooth or form.activation == "none" or len(samples) < len(parts):
        return None, None
    activation_peak = torch.stack([sample.peak.float() for sample in samples]).amax(dim=0)
    weight_peak = torch.stack([part.column_peak() for part in parts]).amax(dim=0)
    candidates = smooth.all_scales(activation_peak, weight_peak, recipe.grid)
    generator = seeded(recipe.seed, 1)
    propose = [_proposals(part, candidates, rank, generator) for part in parts]

    def error(scales: Tensor, bound: Tensor) -> Tensor:
        total = torch.zeros_like(bound)
        candidate: Candidate = {}
        for part, branch_of in zip(parts, propose, strict=True):
            smoothed = _smoothed(part, scales, form, recipe)
            branch = branch_of(smoothed)
            if block_loss is None:
                total = total + smoothed.loss(branch, recipe.search_rows, bound - total)
            else:
                candidate |= _candidate(smoothed, branch)
        return total if block_loss is None else block_loss(candidate)

    scales, trials = smooth.search(activation_peak, weight_peak, error, recipe.grid)
    least = min(trial.error for trial in trials)
    winner = [trial for trial in trials if trial.error <= least][-1]
    storage = recipe.storage_dtype(parts[0].weights[0].dtype)
    range_ = torch.finfo(storage)  # fp16's is narrow: a nearly dead channel would get infinity or zero
    return scales.clamp(range_.tiny, range_.max).to(storage), winner


def _proposals(
    part: Part, candidates: list[Tensor], rank: int, generator: torch.Generator
) -> Callable[[SmoothedPart], Branch]:
    """The search's branch of one candidate after the other."""
    if candidates[0].device.type in TOGETHER_ON:
        joined = torch.cat([weight.float() for weight in part.weights])
        ready = iter(branches_together(joined, torch.stack(candidates), rank, generator))
        return lambda _: next(ready)
    # consecutive candidates have nearly the same leading directions: one warm iteration is enough
    warm = WarmSvd(rank, generator, first=4, later=1)
    return lambda smoothed: warm(smoothed.whole())


def _branch(smoothed: SmoothedPart, rank: int, recipe: Recipe, block_loss: BlockLoss | None) -> Branch:
    """The refined branch of one part, on the smoothed weight."""
    part = smoothed.part
    exact = recipe.svd == "exact" or (recipe.svd == "auto" and min(part.shape) <= EXACT_SVD_UP_TO)
    warm = WarmSvd(rank, seeded(recipe.seed, 2), first=6, later=2)

    def settle(branch: Branch, target: Tensor) -> float:
        error = smoothed.settle(branch, target, 0 if block_loss is not None else recipe.rows)
        if block_loss is None or not part.sampled:
            return error
        return block_loss(_candidate(smoothed, branch)).item()

    decompose = (lambda matrix: truncated_svd(matrix, rank)) if exact else warm
    return refine(smoothed.whole(), decompose, settle, recipe.refine_rounds)


def _candidate(smoothed: SmoothedPart, branch: Branch) -> Candidate:
    """What a block needs to run with this branch and its rounded residual in place of the layers."""
    part = smoothed.part
    rounded = torch.empty(part.shape, device=part.weights[0].device)
    for rows, _, panel in smoothed.rounded(branch):
        rounded[rows] = panel
    return {
        name: (
            rounded[part.rows_of(name)],
            Branch(branch.up[part.rows_of(name)], branch.down),
            smoothed.scales,
        )
        for name in part.names
    }


def _encode(smoothed: SmoothedPart, branch: Branch, recipe: Recipe) -> dict[str, QuantizedLayer]:
    """Stores the branch in 16 bits, then rounds what is left of the weight, so the branch's rounding is
    absorbed.
    """
    part, scales = smoothed.part, smoothed.scales
    storage = recipe.storage_dtype(part.weights[0].dtype)
    factor = torch.ones((), device=branch.up.device) if scales is None else scales.float()
    down, up = in_range(branch.down / factor, branch.up, storage)
    stored = Branch(up.float(), down.float() * factor)
    if recipe.gptq and part.samples is not None and smoothed.form.activation != "none":
        residual = torch.cat([panel for _, panel in smoothed.residuals(stored)])
        inputs = smoothed.smooth_inputs(part.samples.rows)
        codes, grid = gptq.gptq(residual, inputs, smoothed.form, smoothed.scale_dtype, part.names[0])
    else:
        codes, grid = smoothed.encode(stored)
    layers = {}
    for name, own, bias in zip(part.names, part.weights, part.biases, strict=True):
        rows = part.rows_of(name)
        layers[name] = QuantizedLayer(
            format=smoothed.form.name,
            shape=(own.shape[0], own.shape[1]),
            codes=codes[rows].clone(),
            scales=Scales(
                grid.group[rows].clone(), None if grid.channel is None else grid.channel[rows].clone()
            ),
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
    residual = decode_weight(layer.codes, layer.scales, layer.form, layer.shape[1]).div_(factor)
    shift = GELU_SHIFT * residual.sum(dim=1)
    layer.bias = ((0 if bias is None else bias.float()) - shift).to(storage)
