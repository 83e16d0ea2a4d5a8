"""A whole text-to-image folder for a package: transformer and adapters in four bits, the rest as it is."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fewer.core.device import DeviceName, pick_device
from fewer.core.errors import ConfigError
from fewer.core.files import copy_folder, write_json
from fewer.core.progress import Progress, SilentProgress, track
from fewer.core.tensors import write_tensors
from fewer.generate.large_edition import FOLDER as LARGE
from fewer.generate.large_edition import WEIGHTS as ADAPTER
from fewer.generate.lora import read_lora
from fewer.generate.model_folder import DEFAULT_MODEL
from fewer.generate.pipeline import TextToImage
from fewer.generate.sampling.few_steps import FOLDER as FEW_STEPS
from fewer.generate.transformer import SanaTransformer
from fewer.generate.transformer.formats import write_params
from fewer.generate.transformer.shards import WEIGHTS
from fewer.quantize.even_factors import package_adapter
from fewer.quantize.importance import importance
from fewer.quantize.models import OpenModel, open_model
from fewer.quantize.package import BITS, packed
from fewer.quantize.prompts import Prompts, choose_prompts, training_captions
from fewer.quantize.runs import calibration

TEXTS = 512
"""Captions that are read, not drawn: the layers that read text see little of it in few pictures."""
WORK = ".unfinished"


def package_model(
    model: str | Path,
    output: Path,
    *,
    calibration_file: Path | None = None,
    prompts: int | None = None,
    bits: float = BITS,
    seed: int = 0,
    device: DeviceName = "auto",
    progress: Progress | None = None,
) -> dict[str, object]:
    """Writes `output`, which appears when it is whole, from a folder in Sana's layout; returns figures.

    Raises `ConfigError` for a model that is none or an output that exists, and what `package_transformer`
    raises.
    """
    began, progress = time.perf_counter(), progress or SilentProgress()
    folder, where = DEFAULT_MODEL if str(model) == "default" else Path(model), pick_device(device)
    if output.exists():
        raise ConfigError(f"--output {output.name!r} exists already; choose another")
    opened = open_model(str(model), torch.float32, where)
    if not isinstance(opened.pipeline, TextToImage) or not isinstance(opened.module, SanaTransformer):
        raise ConfigError(
            f"{folder.name!r} is no text-to-image folder in Sana's layout; only those are packaged"
        )
    chosen = choose_prompts(opened, calibration_file, prompts, where)
    known = importance(opened.module, _calibrate(opened, chosen, seed, progress), seed)
    tensors = packed(opened.module.state_dict(), known, bits)
    staged = output.with_name(f"{output.name}{WORK}")
    shutil.rmtree(staged, ignore_errors=True)
    copy_folder(folder, staged, shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(staged / "transformer")
    file = staged / "transformer" / f"{WEIGHTS}.safetensors"
    write_tensors(file, tensors, {"format": "pt"})
    write_json(staged / "transformer" / "config.json", write_params(opened.module.params))
    sizes = {"transformer": file.stat().st_size}
    for edition in (FEW_STEPS, LARGE):
        adapter = staged / edition / ADAPTER
        if adapter.is_file():
            write_tensors(adapter, *package_adapter(read_lora(adapter), known, bits))
            sizes[str(edition)] = adapter.stat().st_size
    staged.rename(output)
    parameters = sum(tensor.numel() for tensor in opened.module.state_dict().values())
    return {
        "model": str(model),
        "output": str(output),
        "parameters": parameters,
        "bytes": sizes,
        "bits_a_parameter": round(8 * sizes["transformer"] / parameters, 3),
        "calibrated_on": chosen.source,
        "calibration_prompts": len(chosen.lines),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _calibrate(opened: OpenModel, chosen: Prompts, seed: int, progress: Progress) -> Callable[[], object]:
    """Draws the prompts, and reads many more captions than it draws where it has them."""
    pipeline, network = opened.pipeline, opened.module
    assert isinstance(pipeline, TextToImage) and isinstance(network, SanaTransformer)
    draw = calibration(opened, chosen.lines, 0, seed, progress)
    lines = training_captions(TEXTS) if chosen.own_scenes else chosen.lines
    assert draw is not None
    weight = network.proj_out.weight

    def run() -> None:
        draw()
        for line in track(lines, progress, "read"):
            text = pipeline.encoder.encode([line], instruct=pipeline.settings.chi)
            network.prepare(text.tokens.to(weight.dtype), text.mask)

    return run
