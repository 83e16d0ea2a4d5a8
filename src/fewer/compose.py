"""Where rooms meet, since they do not know each other: `fewer generate` in 4 bits and on several devices.

The pipeline is changed from outside: its transformer is quantized, then spread; its autoencoder is spread.
With several devices every rank draws the same picture and the first one saves it.
"""

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from fewer.core.progress import Progress, SilentProgress, make_progress
from fewer.generate.command import GenerateCommand, generate_command

if TYPE_CHECKING:
    from fewer.generate.pipeline import TextToImage

__all__ = ["GenerateCommand", "generate_anywhere"]


def generate_anywhere(request: GenerateCommand, progress: Progress) -> dict[str, object]:
    """`fewer generate`, on this process alone or on `request.devices` of them (`torchrun` works too)."""
    from fewer.core.ranks import announced_ranks
    from fewer.parallel.launch import run_on_devices

    devices = max(request.devices, announced_ranks())
    if devices == 1 or request.class_name:
        return generate_command(request, progress, lambda pipe: _shrink(pipe, request, progress))
    result = run_on_devices(_draw_on_rank, devices, request, device_type=request.device)
    assert isinstance(result, dict)
    return result


def _shrink(pipe: "TextToImage", request: GenerateCommand, progress: Progress) -> None:
    """`--precision svdquant` on a 16-bit model: quantized here and now, calibrated on the request itself.

    A folder made by `fewer quantize` needs none of this: it is loaded as it is.
    """
    if request.precision != "svdquant" or any(map(_is_quantized, pipe.transformer.modules())):
        return
    from fewer.generate.request import GenerateRequest
    from fewer.quantize import FAST, quantize

    wanted = {field.name: getattr(request, field.name) for field in fields(GenerateRequest)}
    sample = GenerateRequest(
        **wanted | {"prompt": request.prompt[:4] or ("a picture",), "count": 1, "steps": 4}
    )
    progress.say("quantizing to 4 bits; `fewer quantize` keeps the result for the next time")
    quantize(
        pipe.transformer, "h8", calibrate=lambda: list(pipe.iterate(sample)), recipe=FAST, progress=progress
    )


def _is_quantized(module: object) -> bool:
    return type(module).__name__ == "QuantizedLinear"


def _draw_on_rank(group: object, request: GenerateCommand) -> dict[str, object]:
    from fewer.parallel.attach import parallelize
    from fewer.parallel.group import Group
    from fewer.parallel.plan import ParallelPlan

    assert isinstance(group, Group)
    first = group.rank == 0
    progress = make_progress("auto") if first else SilentProgress()

    def spread(pipe: "TextToImage") -> None:
        _shrink(pipe, request, progress)
        strength = pipe.settings.guidance if request.guidance is None else request.guidance
        # Halves of guidance exchange one small result a step; bands exchange twice a layer.
        split = strength > 1 and group.size % 2 == 0
        plan = ParallelPlan(devices=group.size, mode="sync", guidance="split" if split else "batched")
        pipe.transformer = parallelize(pipe.transformer, plan, group)
        pipe.autoencoder = parallelize(pipe.autoencoder, ParallelPlan(devices=group.size, mode="sync"), group)
        if first:
            progress.say(f"{group.size} devices: {plan.explain()}")

    result = generate_command(replace(request, devices=1), progress, spread, save=first)
    return {**result, "devices": group.size}
