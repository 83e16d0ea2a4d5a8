"""`fewer generate`: from options to files."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError
from fewer.core.files import output_files, safe_name
from fewer.core.progress import Progress
from fewer.generate.class_pictures import ClassModel, draw_classes, is_class_conditional, open_class_model
from fewer.generate.picture import Picture, read_request, repeat
from fewer.generate.request import GenerateRequest

if TYPE_CHECKING:
    from fewer.generate.pipeline import TextToImage


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCommand(GenerateRequest):
    """Draws pictures from prompts. Everything that decides a picture, and where it is drawn and put."""

    output: Path = Path("outputs")
    """A .png file, or a folder for pictures named after prompt and seed."""
    from_picture: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Draw again what a .png of ours holds; options given beside it win."""
    metadata: bool = True
    """Write the request into the picture."""
    text_encoder: Path | None = None
    """Folder of a language model, in place of the model's own."""
    autoencoder: Path | None = None
    """Folder of a DC-AE, in place of the model's own."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """Number format of the networks; `auto` is bf16 on a GPU, fp32 on a CPU."""
    precision: Literal["bf16", "fp16", "fp32", "svdquant"] | None = None
    """The same choice with 4-bit weights and activations (svdquant) beside the formats."""
    branch: Literal["kept", "folded"] = "kept"
    """4-bit layers on a GPU: low-rank branches beside the weights, or `folded`: faster and less exact."""
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs that draw one picture together."""
    parallel: Literal["auto", "sync", "displaced", "naive"] = "auto"
    """Several devices: exact (`sync`; so is `auto`), or neighbours as of the step before (`displaced`)."""
    split_guidance: Literal["auto", "split", "batched"] = "auto"
    """Several devices: the halves of guidance on different ones; `auto` measures and takes the faster."""
    together: Annotated[int, Field(ge=1, le=64)] = 1
    """Pictures drawn side by side, where there are several: faster on a GPU, equal up to rounding."""
    class_name: Annotated[str, Field(max_length=1000)] = ""
    """What to draw with a model of `fewer train class-conditional`: one of its classes, or a number."""


def generate_command(
    request: GenerateCommand,
    progress: Progress,
    adapt: "Callable[[TextToImage], None] | None" = None,
    save: bool = True,
    load: "Callable[..., TextToImage] | None" = None,
    load_class: Callable[..., ClassModel] = open_class_model,
) -> dict[str, object]:
    """Draws and saves each picture as soon as it is done, so that stopping keeps what is finished.

    `load` opens the model (`TextToImage.load` if absent), `load_class` one that draws classes; `adapt` may
    change the loaded pipeline from outside (spread it over devices, quantize it). A rank that only helps
    another one to draw does not `save`.
    """
    if request.class_name or is_class_conditional(Path(request.model)):
        return draw_classes(request, progress, load_class)
    wanted, dtype = resolve(request)
    targets = _targets(request.output, wanted.singles())
    if save:
        output_files(targets)

    from fewer.generate.memory import require_room
    from fewer.generate.pipeline import Denoised, TextToImage

    began = time.perf_counter()
    pipe = (load or TextToImage.load)(
        wanted.model,
        device=request.device,
        dtype=dtype,
        text_encoder=request.text_encoder,
        autoencoder=request.autoencoder,
        style=wanted.style,
    )
    if adapt is not None:
        adapt(pipe)
    loaded = time.perf_counter()
    drawn: list[dict[str, object]] = []
    try:
        finished = 0
        folds = request.branch == "folded"
        if folds and not pipe.transformer.proj_out.weight.is_cuda:
            raise ConfigError("branch folded is for a GPU; on a CPU leave it out (there is nothing to gain)")
        pipe.accelerate(fold_branch=folds)
        if request.devices == 1:  # several ask for their bands, on every rank at once
            singles = wanted.singles()
            require_room(pipe, pipe.complete(singles[0]), min(request.together, len(singles)))
        for event in pipe.iterate(wanted, together=request.together):
            if isinstance(event, Denoised):
                if event.index != finished:  # of pictures drawn side by side the first one is shown
                    continue
                if event.step.index == 0:
                    what = f"picture {event.index + 1} of {event.total}" if event.total > 1 else "picture"
                    progress.start(what, event.step.total)
                progress.advance(noise=event.step.sigma)
            else:
                finished += 1
                progress.stop()
                if not save:
                    continue
                path = event.picture.save(targets[event.index], metadata=request.metadata)
                drawn.append(_facts(event.picture, path, event.seconds))
                if event.picture.read is not None:
                    progress.say(f'read as "{event.picture.read}" (--as-written draws it word for word)')
                progress.say(f"{path}  (seed {event.picture.seed}, {event.seconds:.1f} s)")
    finally:
        progress.stop()
    return {
        "output": drawn[0]["path"] if len(drawn) == 1 else str(request.output),
        "pictures": drawn,
        "model": wanted.model,
        "seconds_to_load": round(loaded - began, 3),
        "seconds_to_warm_up": round(pipe.warm_up_seconds, 3),
        "seconds": round(time.perf_counter() - began, 3),
    }


def resolve(request: GenerateCommand) -> tuple[GenerateRequest, str]:
    """What to draw and in which number format, after --from and --precision have had their say."""
    wanted = GenerateRequest(
        **{field.name: getattr(request, field.name) for field in fields(GenerateRequest)}
    )
    dtype: str = request.dtype
    if request.from_picture is not None:
        stored, stored_dtype = read_request(request.from_picture)
        wanted = repeat(wanted, stored)
        dtype = stored_dtype if dtype == "auto" else dtype
    if request.precision is not None and request.precision != "svdquant":
        if request.dtype not in ("auto", request.precision):
            raise ConfigError(f"dtype {request.dtype} contradicts precision {request.precision}; give one")
        dtype = request.precision
    return wanted, dtype


def _targets(output: Path, singles: list[GenerateRequest]) -> list[Path]:
    """One file per picture; names that would meet get a number. An existing file of ours is replaced."""
    if output.suffix and output.suffix.lower() != ".png":
        raise ConfigError(f"output {output.name!r} must be a .png file or a folder")
    if output.suffix and len(singles) == 1:
        return [output]
    if output.suffix:
        return [output.with_name(f"{output.stem}-{number + 1}.png") for number in range(len(singles))]
    targets: list[Path] = []
    for single in singles:
        stem = f"{safe_name(single.prompt[0][:60], 'picture')}-{single.seed}"
        same = sum(1 for path in targets if path.stem == stem or path.stem.startswith(f"{stem}-again"))
        targets.append(output / (f"{stem}-again{same}.png" if same else f"{stem}.png"))
    return targets


def _facts(picture: Picture, path: Path, seconds: float) -> dict[str, object]:
    width, height = picture.image.size
    facts: dict[str, object] = {
        "path": str(path),
        "prompt": picture.request.prompt[0],
        "seed": picture.seed,
        "width": width,
        "height": height,
        "seconds": round(seconds, 3),
    }
    if picture.read is not None:
        facts["read_as"] = picture.read
    if picture.drawn is not None:
        facts["large_edition"] = list(picture.drawn)
    return facts
