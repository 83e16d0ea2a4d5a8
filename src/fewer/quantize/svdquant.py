"""The journey of a checkpoint into 4 bits, in the order of the code.

1. `plan_layers` says which layers take part and which of them read the same input (roles.py).
2. The user's `calibrate` function runs the 16-bit model; hooks sample what the layers read (calibrate.py).
3. Per group: smoothing scales move outliers into the weight, an SVD puts the outlier directions into a 16-bit
   low-rank branch, and what is left is rounded to 4 bits (solve.py, smooth.py, lowrank.py, gptq.py).
4. Each finished group goes to disk at once (store.py): memory stays bounded and an interrupted run resumes.
5. Only when every group is done are the layers replaced, so an error leaves the model as it was (linear.py).
Paper: SVDQuant, arXiv 2411.05007.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.core.modules import other_names, set_module
from fewer.core.progress import Progress, SilentProgress
from fewer.quantize.block import block_loss
from fewer.quantize.calibrate import BLOCK_SHARE, Observations, observe, plan_passes
from fewer.quantize.formats import FORMATS, Format, pick_format
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.linear import QuantizedLinear
from fewer.quantize.measure import LayerReport, report_of
from fewer.quantize.parts import Part
from fewer.quantize.plan_checks import check_plan
from fewer.quantize.recipe import Recipe
from fewer.quantize.roles import SPLIT_NAMES, Choice, Plan, eligible, plan_layers, weight_of
from fewer.quantize.solve import solve_group, weight_only
from fewer.quantize.store import LayerStore

logger = logging.getLogger(__name__)


@torch.no_grad()
def quantize(
    module: nn.Module,
    format: str = "int4",
    rank: int = 32,
    calibrate: Callable[[], object] | None = None,
    *,
    recipe: Recipe | None = None,
    plan: Plan | None = None,
    store: Path | None = None,
    calibrated_on: str = "",
    progress: Progress | None = None,
) -> nn.Module:
    """Replaces the linear layers of `module` by 4-bit ones, in place, and returns it.

    `calibrate()` must run the 16-bit module on typical data (a few dozen calls); without it there is no
    smoothing and the branch minimises the weight's own error. `store` is a folder for finished groups: a
    second call with the same settings goes on where the first stopped (a temporary folder otherwise).
    `calibrated_on` says what `calibrate` runs the module on: a store of other data is refused, as one of
    other settings is.
    `module.quantization_reports` holds one `LayerReport` per layer afterwards.

    Raises `ConfigError` (unknown format, recipe out of range, rank or plan that does not fit, weights in no
    floating-point format, GPTQ without calibration) or `DataError` (NaN or Inf in weights or calibration, too
    few rows for GPTQ), naming the layer; the module is then unchanged.
    """
    form, progress = pick_format(format), progress or SilentProgress()
    recipe = validate(Recipe, recipe or Recipe())
    plan = plan or plan_layers(module)
    if form.name == "w4a16":
        rank, calibrate = 0, None
    if recipe.gptq and calibrate is None:
        raise ConfigError(
            "GPTQ rounds for the calibration's inputs: give a calibration, and a format that rounds "
            "activations (int4, nvfp4 or h8); or leave GPTQ off"
        )
    check_plan(module, plan, rank)
    undo = split_layers(module, plan.splits)
    finished = False
    with LayerStore(store, _fingerprint(module, plan, form, rank, recipe, calibrated_on)) as layers:
        try:
            _solve_all(module, plan, form, rank, calibrate, recipe, layers, progress)
            finished = True
        finally:
            if not finished:
                for name, original in undo.items():
                    set_module(module, name, original)
        reports = _replace_all(module, plan, layers)
    module.quantization_reports = reports  # pyright: ignore
    return module


def _solve_all(
    module: nn.Module,
    plan: Plan,
    form: Format,
    rank: int,
    calibrate: Callable[[], object] | None,
    recipe: Recipe,
    layers: LayerStore,
    progress: Progress,
) -> None:
    """Quantizes what the store does not hold yet, group by group, pass by pass."""
    if calibrate is None and form.activation != "none":
        logger.warning("no calibration was given: smoothing scales stay at 1")
    modulation = plan.names("w4a16")
    todo = [group for group in plan.groups if group.key not in layers]
    widths = {choice.name: choice.shape[1] for choice in plan.choices}
    itemsize = next(module.parameters()).element_size()
    # planned and sampled as if nothing were done yet: a resumed run must see the very rows the first one saw
    groups = list(plan.groups)
    passes, rows = plan_passes(groups, widths, recipe, itemsize) if calibrate else ([groups], 0)
    finished = len(groups) - len(todo)
    try:
        for chunk in passes:
            seen = Observations({}, {})
            left = [group for group in chunk if group in todo]
            if calibrate is not None and left:
                budget = recipe.sample_mebibytes * 2**20
                seen = observe(module, chunk, calibrate, recipe, rows, budget // BLOCK_SHARE)
                _warn_unseen(seen)
            progress.start("quantize", len(groups) + len(modulation))  # after `calibrate`'s own progress
            progress.advance(finished)
            finished += len(left)
            for group in left:
                parts = [_part(module, plan, names, seen, form, recipe) for names in group.parts]
                loss = block_loss(module, group.block, seen.calls.get(group.block, []), form)
                solved, reports = solve_group(parts, form, rank, recipe, loss)
                for name, layer in solved.items():
                    layer.convolution = isinstance(module.get_submodule(name), nn.Conv2d)
                layers.add(group.key, solved, reports)
                for names in group.parts:
                    seen.samples.pop(names[0], None)  # its memory is free for what comes next
                progress.advance(1, error=max(report.error or report.weight_error for report in reports))
        for name in modulation:
            if name not in layers:
                _add_weight_only(module, name, layers, recipe)
            progress.advance()
    finally:
        progress.stop()


def _part(
    module: nn.Module, plan: Plan, names: tuple[str, ...], seen: Observations, form: Format, recipe: Recipe
) -> Part:
    members = [module.get_submodule(name) for name in names]
    weights = [weight_of(member) for member in members]
    unsigned = recipe.unsigned and form.activation == "int4" and plan.choice(names[0]).unsigned
    return Part(names, weights, [member.bias for member in members], seen.samples.get(names[0]), unsigned)


def _warn_unseen(seen: Observations) -> None:
    unseen = [name for name, samples in seen.samples.items() if samples is None]
    if len(unseen) == len(seen.samples):
        logger.warning("the calibration never ran the model: smoothing scales stay at 1")
    elif unseen:
        logger.warning("the calibration never reached %s: no smoothing there", ", ".join(unseen[:5]))


def _add_weight_only(module: nn.Module, name: str, layers: LayerStore, recipe: Recipe) -> None:
    member = module.get_submodule(name)
    weight, form = weight_of(member), FORMATS["w4a16"]
    layer = weight_only(name, weight, member.bias, form, recipe)
    layer.convolution = isinstance(member, nn.Conv2d)
    layers.add(name, {name: layer}, [report_of(name, layer, weight, member.bias, None)])


def _replace_all(module: nn.Module, plan: Plan, layers: LayerStore) -> list[LayerReport]:
    """The only step that changes the model: nothing but loading and setting, one group at a time."""
    reports: list[LayerReport] = []
    places = other_names(module)
    firsts = {group.key: group.parts[0][0] for group in plan.groups} | {n: n for n in plan.names("w4a16")}
    for key, first in firsts.items():
        device = next(module.get_submodule(first).parameters()).device
        made, found = layers.read(key, device)
        reports += found
        for name, layer in made.items():
            install(module, name, layer, places)
    order = {choice.name: index for index, choice in enumerate(plan.choices)}
    return sorted(reports, key=lambda report: order[report.name])


def install(
    module: nn.Module, name: str, layer: QuantizedLayer, places: Mapping[str, tuple[str, ...]] | None = None
) -> QuantizedLinear:
    """Puts a quantized layer where `name` is, and where else the same layer stands (`other_names`)."""
    linear = QuantizedLinear(layer, name=name)
    for place in (name, *(places or {}).get(name, ())):
        set_module(module, place, linear)
        parent = module.get_submodule(place.rpartition(".")[0])
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # torch's fused path would multiply by `.weight` and skip us
    return linear


class SplitLinear(nn.Module):
    """One linear layer cut along its inputs: y = attention(x[:, :d]) + mlp(x[:, d:]). The bias is the
    second's.
    """

    def __init__(self, original: nn.Linear, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        pieces = original.weight.detach().split(widths, dim=1)
        for name, piece, bias in zip(SPLIT_NAMES, pieces, (None, original.bias), strict=True):
            linear = nn.Linear(1, 1, bias=False, device="meta")
            linear.in_features, linear.out_features = piece.shape[1], piece.shape[0]
            linear.weight = nn.Parameter(piece, requires_grad=False)
            linear.bias = bias
            setattr(self, name, linear)

    def forward(self, inputs: Tensor) -> Tensor:
        attention, mlp = inputs.split(self.widths, dim=-1)
        return self.attention(attention) + self.mlp(mlp)


def split_layers(module: nn.Module, splits: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, nn.Module]:
    """Cuts the named layers; returns the originals, whose memory the pieces share."""
    originals: dict[str, nn.Module] = {}
    for name, widths in splits:
        original = module.get_submodule(name)
        if not eligible(original) or not isinstance(original, nn.Linear):
            raise ConfigError(f"layer {name!r} cannot be split: it is a {type(original).__name__}")
        originals[name] = original
        set_module(module, name, SplitLinear(original, widths))
    return originals


def _fingerprint(
    module: nn.Module, plan: Plan, form: Format, rank: int, recipe: Recipe, calibrated_on: str
) -> str:
    """What must be equal for stored groups to be used again: the settings, the layers, the calibration's
    name and the weights' own sums.
    """
    sums = [
        sum(rows.sum(dtype=torch.float64).item() for rows in parameter.detach().flatten().split(2**20))
        for parameter in module.parameters()
        if parameter.numel()
    ]
    return repr((plan, form, rank, recipe, calibrated_on, sums))


def describe(choice: Choice) -> dict[str, object]:
    """One line of the dry run."""
    return {
        "layer": choice.name,
        "shape": list(choice.shape),
        "method": choice.method,
        "reason": choice.reason + (", unsigned after GELU" if choice.unsigned else ""),
    }
