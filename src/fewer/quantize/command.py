"""`fewer quantize`: what it is asked, the run, and what it answers."""

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName, pick_device, pick_dtype
from fewer.core.errors import ConfigError
from fewer.core.files import output_folder
from fewer.core.progress import Progress, track
from fewer.quantize.checkpoint import QuantizedCheckpoint, checkpoint_of, save_quantized
from fewer.quantize.measure import LayerReport
from fewer.quantize.models import OpenModel, name_of, open_model
from fewer.quantize.package import BITS, FEWEST
from fewer.quantize.package import MOST as MOST_BITS
from fewer.quantize.pipeline_folder import note_pipeline
from fewer.quantize.prompts import MOST, STEPS, Prompts, choose_prompts
from fewer.quantize.recipe import FAST, Recipe
from fewer.quantize.roles import Plan, plan_layers
from fewer.quantize.runs import calibration
from fewer.quantize.svdquant import describe, quantize
from fewer.quantize.working import round_weights, stored_in, working_dtype

WORK = ".unfinished"
PICTURES, MOST_PICTURES = 4, 8  # in a report: by itself, and of those asked for
_OF_LAYERS = (
    "format", "rank", "calibrate", "preset", "gptq", "unsigned", "dry_run", "resume", "report",
    "report_prompts",
)  # fmt: skip
SAMPLE_MEBIBYTES = {"cpu": 96, "cuda": 4096}  # a GPU has room for one pass over the calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest:
    """What `fewer quantize` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    model: tyro.conf.Positional[str]
    """ "default", or the folder of a pipeline, a class-conditional, diffusers or language model."""
    output: Path | None = None
    """New folder for the 4-bit model (not needed with --dry-run)."""
    format: Literal["int4", "nvfp4", "h8", "w4a16"] = "int4"
    """int4 and nvfp4: 4-bit weights and activations; h8: 4-bit weights, 8-bit activations; w4a16: weights
    only.
    """
    rank: Annotated[int, Field(ge=0, le=1024)] = 32
    """Rank of the 16-bit branch that carries the outliers."""
    calibration: Path | None = None
    """Text file with one prompt a line; without it a text-to-image model of ours takes prompts of its own and
    a class-conditional one draws its classes. Any other model is then quantized without smoothing.
    """
    calibrate: bool = True
    """Off: nothing is run, so there is no smoothing, and the branch minimises the weights' own error."""
    prompts: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Most prompts, or pictures of classes, that are used: 64 if not given, of own prompts fewer on a CPU."""
    preset: Literal["standard", "fast"] = "standard"
    """standard: 39 candidates, up to 100 rounds; fast: 19 candidates, 5 rounds."""
    gptq: bool = False
    """Round with error feedback (needs at least twice as many calibration rows as channels)."""
    unsigned: bool = True
    """Unsigned activations after GELU (int4); off for files meant for diffusers' Nunchaku Lite."""
    package: bool = False
    """Four bits a weight for shipping: a whole folder of a text-to-image model whose transformer and adapters
    take half a byte a weight on disk and are expanded to ordinary weights when it is opened, by every verb.
    """
    bits: Annotated[float, Field(ge=FEWEST, le=MOST_BITS)] = BITS
    """Of a package's transformer, for each parameter, all included."""
    dry_run: bool = False
    """Only list what would be quantized."""
    resume: bool = False
    """Go on with an interrupted run of the same settings."""
    report: bool = False
    """Write report.html: error, size and time layer by layer, and pictures where the model draws."""
    report_prompts: tuple[str, ...] = ()
    """Prompts (or classes) of the report's pictures; the first that it is calibrated on otherwise."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of sampling and of the randomised SVD."""
    device: DeviceName = "auto"
    """Where to work."""
    dtype: DtypeName = "bf16"
    """Number format of the 16-bit parts."""


def quantize_command(request: QuantizeRequest, progress: Progress) -> dict[str, object]:
    """Quantizes a model from disk to disk; the output folder appears only when it is whole."""
    began = time.perf_counter()
    device = pick_device(request.device)
    if not request.dry_run:
        _check_output(request)
    if request.package:
        return _package(request, progress)
    dtype = pick_dtype(request.dtype, device)
    working = working_dtype(request.model, dtype, device)
    opened = open_model(request.model, working, device)
    plan = plan_layers(opened.module)
    if request.dry_run:
        return {"model": request.model, "layers": [describe(choice) for choice in plan.choices]}
    assert request.output is not None
    if working != dtype:
        round_weights(opened.module, dtype)
    prompts = choose_prompts(
        opened, request.calibration, request.prompts, device, calibrate=request.calibrate
    )
    calibrate = _calibrate(opened, request, prompts, progress)
    shown = _shown(opened, request, prompts) if request.report else ()
    before = _pictures(opened, shown, request.seed, progress)
    kept = {tensor.data_ptr(): tensor for tensor in opened.module.state_dict().values()}  # tied ones once
    original = sum(t.numel() * min(t.element_size(), dtype.itemsize) for t in kept.values())
    recipe = dataclasses.replace(
        FAST if request.preset == "fast" else Recipe(),
        gptq=request.gptq, unsigned=request.unsigned, seed=request.seed, branch_dtype=name_of(dtype),
        sample_mebibytes=SAMPLE_MEBIBYTES[device.type] * working.itemsize // dtype.itemsize,
    )  # fmt: skip
    from fewer.generate.pipeline import TextToImage

    work = request.output.with_name(f"{request.output.name}{WORK}")
    if not request.resume and work.exists():
        progress.say("an unfinished run of this output is thrown away; --resume would have gone on with it")
        shutil.rmtree(work)
    quantize(
        opened.module, request.format, request.rank, calibrate,
        recipe=recipe, plan=plan, store=work / "layers", calibrated_on=repr((prompts, request.prompts)),
        progress=progress,
    )  # fmt: skip
    reports: list[LayerReport] = opened.module.quantization_reports  # pyright: ignore
    checkpoint = stored_in(checkpoint_of(opened.module, opened.config), dtype)
    result = _figures(request, checkpoint, reports, original, time.perf_counter() - began)
    result |= {"kept_in_16_bits": _kept(plan)}
    result |= {"calibrated_on": prompts.source, "calibration_prompts": len(prompts.lines)}
    staged = work / "output"
    save_quantized(checkpoint, staged)
    if isinstance(opened.pipeline, TextToImage) or opened.autoencoder is not None:
        note_pipeline(staged, request.model, request.output)
    if request.report:
        from fewer.quantize.report import write_report

        after = _pictures(opened, shown, request.seed, progress)
        write_report(staged / "report.html", result, reports, before, after)
    staged.rename(request.output)
    shutil.rmtree(work)
    return result | {"output": str(request.output)}


def _package(request: QuantizeRequest, progress: Progress) -> dict[str, object]:
    """A folder for shipping. Raises `ConfigError` for options that say nothing of it."""
    from fewer.quantize.package_folder import package_model

    usual = {option.name: option.default for option in dataclasses.fields(QuantizeRequest)}
    odd = [name for name in _OF_LAYERS if getattr(request, name) != usual[name]]
    if odd:
        raise ConfigError(
            f"--{odd[0].replace('_', '-')} says nothing of a package, which is opened as ordinary weights; "
            f"leave it away, or leave out --package"
        )
    assert request.output is not None
    return package_model(
        request.model, request.output, calibration_file=request.calibration, prompts=request.prompts,
        bits=request.bits, seed=request.seed, device=request.device, progress=progress,
    )  # fmt: skip


def _kept(plan: Plan) -> dict[str, str]:
    """Reason -> how many layers stay as they are, and which."""
    found: dict[str, list[str]] = {}
    for choice in plan.choices:
        if choice.method == "keep":
            found.setdefault(choice.reason, []).append(choice.name)
    return {
        reason: f"{len(names)}: {', '.join(names[:20])}" + (", …" if len(names) > 20 else "")
        for reason, names in found.items()
    }


def _check_output(request: QuantizeRequest) -> None:
    if request.output is None:
        raise ConfigError("--output DIR is needed (or --dry-run to see what would be done)")
    if request.output.exists():
        raise ConfigError(f"--output {request.output.name!r} exists already; choose another")
    output_folder(request.output.parent)  # it can be written: better known now than after the work


def _calibrate(
    opened: OpenModel, request: QuantizeRequest, prompts: Prompts, progress: Progress
) -> Callable[[], object] | None:
    """What runs the model, and a line that says on what."""
    pictures = (request.prompts or MOST) if request.calibrate else 0
    calibrate = (
        None
        if request.format == "w4a16"
        else calibration(opened, prompts.lines, pictures, request.seed, progress)
    )
    if calibrate is None:
        progress.say("calibrated on nothing: smoothing scales stay at 1")
    elif not prompts.lines or request.calibration is not None:
        progress.say(f"calibrated on {prompts.source}")
    else:
        progress.say(
            f"calibrated on {prompts.source}: {len(prompts.lines)} drawn in {STEPS} steps each "
            f"(--prompts N for more or fewer, --calibration FILE for your own, --no-calibrate for none)"
        )
    return calibrate


def _shown(opened: OpenModel, request: QuantizeRequest, prompts: Prompts) -> tuple[str, ...]:
    """Prompts or classes of the report's pictures; none for models that draw nothing.

    Raises `ConfigError` for a class that the model does not have.
    """
    if opened.class_names:
        known = opened.class_names
        if odd := [name for name in request.report_prompts if name not in known]:
            raise ConfigError(f"class {odd[0]!r} is not known; allowed: {', '.join(known)[:300]}")
        return (request.report_prompts or known[:PICTURES])[:MOST_PICTURES]
    if opened.pipeline is None:
        return ()
    return (request.report_prompts or prompts.lines[:PICTURES])[:MOST_PICTURES]


def _pictures(
    opened: OpenModel, shown: tuple[str, ...], seed: int, progress: Progress
) -> list[tuple[str, object]]:
    """(prompt or class, picture), the same seeds before and after."""
    if not shown:
        return []
    drawn = track(shown, progress, "draw for the report")
    return [(prompt, opened.draw(prompt, seed + index)) for index, prompt in enumerate(drawn)]


def _figures(
    request: QuantizeRequest,
    checkpoint: QuantizedCheckpoint,
    reports: list[LayerReport],
    original: int,
    seconds: float,
) -> dict[str, object]:
    errors = [report.error for report in reports if report.error is not None]
    worst = max(reports, key=lambda report: report.error or report.weight_error)
    return {
        "model": request.model,
        "format": request.format,
        "rank": 0 if request.format == "w4a16" else request.rank,
        "layers_quantized": len(reports),
        "bytes_before": original,
        "bytes_after": checkpoint.byte_count(),
        "ratio": round(checkpoint.byte_count() / original, 4),
        "mean_error": round(sum(errors) / len(errors), 5) if errors else None,
        "worst_layer": worst.name,
        "worst_error": round(worst.error or worst.weight_error, 5),
        "seconds": round(seconds, 2),
    }
