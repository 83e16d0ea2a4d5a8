"""Where rooms meet, since they do not know each other: `fewer generate` in 4 bits and on several devices.

The pipeline is changed from outside: its transformer is quantized, then spread; its autoencoder is spread.
With several devices every rank draws the same picture and the first one saves it.
"""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json
from fewer.core.progress import Progress, SilentProgress, make_progress
from fewer.generate.command import GenerateCommand, generate_command

if TYPE_CHECKING:
    import torch

    from fewer.generate.class_pictures import ClassModel
    from fewer.generate.pipeline import TextToImage
    from fewer.parallel.group import Group
    from fewer.parallel.plan import ParallelPlan

__all__ = ["GenerateCommand", "generate_anywhere", "open_classes", "open_pipeline"]


def generate_anywhere(request: GenerateCommand, progress: Progress) -> dict[str, object]:
    """`fewer generate`, on this process alone or on `request.devices` of them (`torchrun` works too)."""
    from fewer.core.ranks import announced_ranks
    from fewer.parallel.launch import run_on_devices
    from fewer.parallel.plan import ParallelPlan

    devices = announced_ranks() if request.devices == 1 else request.devices
    if devices == 1 or request.class_name:
        return generate_command(
            request, progress, lambda pipe: _shrink(pipe, request, progress), load=open_pipeline,
            load_class=open_classes,
        )  # fmt: skip
    # What contradicts itself is refused before processes are started.
    ParallelPlan(devices=devices, mode=request.parallel, guidance=request.split_guidance).check()
    result = run_on_devices(_draw_on_rank, devices, request, device_type=request.device)
    assert isinstance(result, dict)
    return result


def open_pipeline(model: str, *, device: str, dtype: str, **options: object) -> "TextToImage":
    """`TextToImage.load`, also for a folder that `fewer quantize` made of a pipeline.

    Raises as it does, and `ConfigError` for a style, which is merged into 16-bit weights.
    """
    from fewer.core.device import pick_device, pick_dtype
    from fewer.generate.pipeline import TextToImage
    from fewer.quantize.pipeline_folder import pipeline_of

    home = None if model == "default" else pipeline_of(Path(model))
    if home is None:
        return TextToImage.load(model, device=device, dtype=dtype, **options)  # pyright: ignore
    if options.get("style"):
        raise ConfigError("a style needs 16-bit weights; take the model that was quantized, or drop --style")
    from fewer.quantize import load_model

    place = pick_device(device)
    transformer = load_model(Path(model), device=place, dtype=pick_dtype(dtype, place))
    pipe = TextToImage.load(home, device=device, dtype=dtype, transformer=transformer, **options)  # pyright: ignore
    pipe.name = model
    return pipe


def open_classes(folder: Path, device: "torch.device", dtype: "torch.dtype") -> "ClassModel":
    """`open_class_model`, also for a folder that `fewer quantize` made of a class-conditional network."""
    from fewer.generate.class_pictures import ClassModel, open_class_model

    config = read_json(folder / "config.json")
    if "quantization_config" not in config:
        return open_class_model(folder, device, dtype)
    from fewer.generate.autoencoder import DCAutoencoder
    from fewer.generate.conditional.build import params_of
    from fewer.quantize import load_model
    from fewer.quantize.pipeline_folder import autoencoder_of

    network, names, stage = load_model(folder, device=device, dtype=dtype), config.get("class_names"), None
    if not isinstance(names, list) or len(names) != params_of(network).classes:
        raise FileError(f"config.json of {folder.name!r} does not name the network's classes")
    if (home := autoencoder_of(folder)) is not None:
        stage = DCAutoencoder.load(home, device=device).float()
    return ClassModel(network, tuple(map(str, names)), stage)


def _shrink(pipe: "TextToImage", request: GenerateCommand, progress: Progress) -> None:
    """`--precision svdquant` on a 16-bit model: quantized here and now, calibrated on the request itself.

    A folder made by `fewer quantize` needs none of this: `open_pipeline` loads it as it is.
    """
    if request.precision != "svdquant" or any(map(_is_quantized, pipe.transformer.modules())):
        return
    from fewer.generate.request import GenerateRequest
    from fewer.quantize import FAST, quantize

    wanted = {field.name: getattr(request, field.name) for field in fields(GenerateRequest)}
    sample = GenerateRequest(
        **wanted | {"prompt": request.prompt[:4] or ("a picture",), "count": 1, "steps": 4, "edition": "full"}
    )
    progress.say("quantizing to 4 bits; `fewer quantize` keeps the result for the next time")
    quantize(
        pipe.transformer, "h8", calibrate=lambda: list(pipe.iterate(sample)), recipe=FAST, progress=progress
    )


def _is_quantized(module: object) -> bool:
    return type(module).__name__ == "QuantizedLinear"


def _draw_on_rank(group: object, request: GenerateCommand) -> dict[str, object]:
    from fewer.parallel.agreement import check_agreement
    from fewer.parallel.attach import parallelize
    from fewer.parallel.group import Group
    from fewer.parallel.plan import ParallelPlan

    assert isinstance(group, Group)
    # Under torchrun every rank has read its own command line.
    check_agreement(group, asdict(replace(request, output=Path(), device="auto")))
    first = group.rank == 0
    progress = make_progress("auto") if first else SilentProgress()
    said: list[str] = []

    def spread(pipe: "TextToImage") -> None:
        _shrink(pipe, request, progress)
        pipe.accelerate(fold_branch=request.branch == "folded")
        plan, why = _plan(pipe, request, group)
        pipe.transformer = parallelize(pipe.transformer, plan, group)
        pipe.autoencoder = parallelize(pipe.autoencoder, ParallelPlan(devices=group.size, mode="sync"), group)
        said.append(why)
        if first:
            progress.say(f"{group.size} devices: {why}")

    result = generate_command(replace(request, devices=1), progress, spread, first, open_pipeline)
    return {**result, "devices": group.size, "plan": said[0] if said else ""}


def _plan(pipe: "TextToImage", request: GenerateCommand, group: "Group") -> "tuple[ParallelPlan, str]":
    """What was asked for; what was left to `auto` is measured and chosen here, on all ranks alike."""
    from fewer.generate.command import resolve
    from fewer.parallel.automatic import plan_on_this_machine
    from fewer.parallel.plan import ParallelPlan

    single = pipe.complete(resolve(request)[0].singles()[0])
    sprint = pipe.transformer.params.guidance_embeds
    guided = not sprint and single.guidance is not None and single.guidance > 1
    plan = ParallelPlan(devices=group.size, mode=request.parallel, guidance=request.split_guidance)
    plan = plan.check().for_steps(single.steps or 1)
    if not hasattr(pipe.transformer, "transformer_blocks"):  # condition-aware: nothing to choose
        mode, guidance = plan.mode, plan.guidance
        plan = replace(
            plan,
            mode="sync" if mode == "auto" else mode,
            guidance="batched" if guidance == "auto" else guidance,
        )
        return plan, plan.explain()
    latents = list(pipe.grid(single))
    text = pipe.settings.text_length
    return plan_on_this_machine(plan, pipe.transformer, group, latents, text, guided)
