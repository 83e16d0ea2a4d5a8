"""`fewer generate --class-name NAME`: pictures from a model of `fewer train class-conditional`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import output_files, read_json, safe_name, write_bytes
from fewer.core.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fewer.generate.autoencoder import DCAutoencoder
    from fewer.generate.command import GenerateCommand

CLASS_NAME = "FewerClassConditional"
"""What config.json of such a folder calls itself."""
_OPTIONS = (
    "class_name", "model", "count", "seed", "steps", "guidance", "shift", "output", "device", "dtype",
    "metadata",
)  # fmt: skip
"""Of `fewer generate`: those that mean something here (there is no metadata to leave out)."""


def is_class_conditional(folder: Path) -> bool:
    """Whether this is a folder that `fewer train class-conditional` wrote."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == CLASS_NAME


@dataclass(frozen=True, slots=True)
class ClassModel:
    """A network ready to draw its classes."""

    network: "nn.Module"
    names: tuple[str, ...]
    autoencoder: "DCAutoencoder | None" = None
    """What decodes the latents that it draws; without one they are the picture."""


def open_class_model(folder: Path, device: "torch.device", dtype: "torch.dtype") -> ClassModel:
    """A 16- or 32-bit folder. Raises `FileError` and `ConfigError` as `load_folder` does."""
    from fewer.generate.autoencoder import DCAutoencoder
    from fewer.generate.conditional.formats import load_folder

    network, names = load_folder(folder)
    stage = folder / "autoencoder"
    decoder = DCAutoencoder.load(stage, device=device).float() if stage.is_dir() else None
    return ClassModel(network.to(device, dtype), names, decoder)


def draw_classes(
    request: "GenerateCommand", progress: Progress, load: "Callable[..., ClassModel]" = open_class_model
) -> dict[str, object]:
    """Draws `count` pictures of one class and saves each as a plain PNG without metadata.

    `load` opens the folder, which may be one that only another room can read.
    """
    _refuse(request)
    import io

    from fewer.core.device import pick_device, pick_dtype
    from fewer.generate.conditional.draw import draw_class, to_pictures

    began = time.perf_counter()
    device = pick_device(request.device)
    dtype = pick_dtype(request.dtype if request.dtype != "auto" else "fp32", device)
    opened = load(Path(request.model), device, dtype)
    names, autoencoder = opened.names, opened.autoencoder
    label = label_of(request.class_name, names)
    targets = _targets(request.output, names[label], request.seed, request.count)
    output_files(targets)
    paths: list[str] = []
    steps = request.steps or 20
    guidance = 1.5 if request.guidance is None else request.guidance
    for first in range(0, request.count, 16):
        seeds = [request.seed + n for n in range(first, min(first + 16, request.count))]
        progress.start(f"{names[label]}, picture {first + 1} to {first + len(seeds)}", steps)
        try:
            for step in draw_class(opened.network, label, seeds, steps, guidance, request.shift or 1.0):
                progress.advance(noise=step.sigma)
        finally:
            progress.stop()
        pixels = step.latents if autoencoder is None else autoencoder.decode(step.latents)
        for picture, target in zip(to_pictures(pixels), targets[first:], strict=False):
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            write_bytes(target, stream.getvalue())
            paths.append(str(target))
    return {
        "output": paths[0] if len(paths) == 1 else str(request.output),
        "pictures": [
            {"path": path, "class_name": names[label], "seed": request.seed + number}
            for number, path in enumerate(paths)
        ],
        "model": request.model,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _refuse(request: "GenerateCommand") -> None:
    folder = Path(request.model)
    if not request.class_name:
        names = ", ".join(map(str, read_json(folder / "config.json").get("class_names", [])))[:300]
        raise ConfigError(f"{folder.name!r} draws classes, not prompts; give --class-name, one of: {names}")
    if not folder.is_dir():
        raise FileError(
            f"--class-name needs --model FOLDER from fewer train class-conditional; "
            f"{folder.name!r} is no folder",
            missing=True,
        )
    if not is_class_conditional(folder):
        raise ConfigError(f"{folder.name!r} draws prompts, not classes; leave --class-name out")
    from fewer.core.ranks import world_size

    unused = [
        {"from_picture": "from"}.get(field.name, field.name)
        for field in fields(request)
        if field.name not in _OPTIONS and getattr(request, field.name) != field.default
    ]
    if unused or world_size() > 1:
        raise ConfigError(f"--class-name does not go with {', '.join(unused) or 'devices'}; leave that out")


def label_of(text: str, names: tuple[str, ...]) -> int:
    """The number of a class that is given by name, or by number. Raises `ConfigError` for none."""
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise ConfigError(f"class {text!r} is not known; allowed: {', '.join(names)[:300]}")


def _targets(output: Path, name: str, seed: int, count: int) -> list[Path]:
    if output.suffix and output.suffix.lower() != ".png":
        raise ConfigError(f"output {output.name!r} must be a .png file or a folder")
    if output.suffix:
        return (
            [output] if count == 1 else [output.with_name(f"{output.stem}-{n + 1}.png") for n in range(count)]
        )
    return [output / f"{safe_name(name, 'class')}-{seed + number}.png" for number in range(count)]
