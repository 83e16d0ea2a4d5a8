"""diffusers' denoisers, alone or in a pipeline's folder: opened from safetensors, nothing downloaded.

A pipeline's other parts (text encoders, autoencoder, scheduler) are opened when a prompt is first drawn, so
that quantizing without prompts needs the memory of the denoiser alone.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json
from fewer.core.tensors import TensorInfo, tensor_header
from fewer.generate.transformer.shards import WEIGHTS, weight_files

DENOISERS = ("transformer", "unet")
"""Sub-folders of a pipeline that hold what draws, in the order they are looked for."""
_LIBRARIES = ("diffusers", "transformers", None)


@dataclass(slots=True)
class DiffusersPipeline:
    """Draws prompts with a denoiser that may have been quantized since it was opened."""

    folder: Path
    part: str
    module: nn.Module
    dtype: torch.dtype
    opened: list[object] = field(default_factory=list)

    def __call__(self, prompt: str, *, seed: int, steps: int | None = None) -> object:
        """diffusers' own answer, `.images` being Pillow pictures; with `steps` latents are left undecoded."""
        pipeline = self._pipeline()
        options: dict[str, object] = {"generator": torch.Generator().manual_seed(seed)}
        if steps is not None:
            options |= {"num_inference_steps": steps, "output_type": "latent"}
        return pipeline(prompt, **options)  # pyright: ignore

    def _pipeline(self) -> object:
        if not self.opened:
            import diffusers

            _check_parts(self.folder)
            try:
                pipeline = diffusers.DiffusionPipeline.from_pretrained(
                    self.folder, torch_dtype=self.dtype, local_files_only=True, use_safetensors=True,
                    **{self.part: self.module},
                )  # fmt: skip
            except _FAILURES as error:
                raise FileError(
                    f"the pipeline {self.folder.name!r} cannot be opened: {_first(error)}"
                ) from error
            pipeline.set_progress_bar_config(disable=True)
            self.opened.append(pipeline.to(next(self.module.parameters()).device))
        return self.opened[0]


_FAILURES = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError)
"""What diffusers and transformers raise for a folder that is damaged or not theirs."""


def denoiser_of(folder: Path) -> str | None:
    """The sub-folder of the part that draws, None if there is none."""
    return next((part for part in DENOISERS if (folder / part / "config.json").is_file()), None)


def open_denoiser(
    folder: Path, config: dict[str, object], dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """A model of diffusers from its folder.

    Raises `FileError` for weights that are missing, damaged, pickled or of other shapes than the
    configuration says, and `ConfigError` for a class that this diffusers does not have.
    """
    kind, header = diffusers_class(config), weights_header(folder)
    _check_shapes(folder, kind, config, header)
    try:
        module = kind.from_pretrained(  # pyright: ignore
            folder, torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False, use_safetensors=True,
            variant=_variant(folder),
        )  # fmt: skip
    except _FAILURES as error:
        raise FileError(f"{folder.name!r} cannot be opened as {kind.__name__}: {_first(error)}") from error
    return module.to(device).eval()


def build_denoiser(config: dict[str, object]) -> nn.Module:
    """A model of that configuration with any weights. Raises `ConfigError` if it describes none."""
    kind = diffusers_class(config)
    try:
        return kind.from_config(config)  # pyright: ignore
    except _FAILURES as error:
        raise ConfigError(f"the configuration describes no {kind.__name__}: {_first(error)}") from error


def _variant(folder: Path) -> str | None:
    """The suffix of a folder that was downloaded in one number format alone ("fp16")."""
    names = [path.name for path in folder.glob(f"{WEIGHTS}*.safetensors")]
    found = {name.split(".")[1] for name in names if name.count(".") == 2}
    return found.pop() if len(found) == 1 and len(names) == 1 else None


def diffusers_class(config: dict[str, object]) -> type[nn.Module]:
    """The class that a configuration names. Raises `ConfigError` if this diffusers has none of that name."""
    name = str(config["_class_name"])
    try:
        import diffusers
    except ImportError as error:
        raise FileError(f"{name} is a model of diffusers: pip install diffusers", missing=True) from error
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"this diffusers has no model class {name!r}; update it, or quantize from Python")
    return found


def weights_header(folder: Path) -> dict[str, TensorInfo]:
    """Names and shapes of all tensors in a folder's safetensors files, each file's layout checked.

    Raises `FileError` if there are none (pickles are refused by name) or a shard is missing.
    """
    stem = WEIGHTS if any(folder.glob(f"{WEIGHTS}*")) else "model"
    files = weight_files(folder, stem)
    return {name: info for path in files for name, info in tensor_header(path)[0].items()}


def _check_shapes(
    folder: Path, kind: type[nn.Module], config: dict[str, object], header: dict[str, TensorInfo]
) -> None:
    """Compares what the configuration implies with the file before any memory is taken."""
    try:
        with torch.device("meta"):
            expected = {
                name: tuple(tensor.shape)
                for name, tensor in kind.from_config(config).state_dict().items()  # pyright: ignore
            }
    except _FAILURES as error:
        raise FileError(
            f"config.json of {folder.name!r} describes no {kind.__name__}: {_first(error)}"
        ) from error
    missing = sorted(set(expected) - set(header))
    if missing:
        raise FileError(
            f"the weights of {folder.name!r} lack {len(missing)} tensors of a {kind.__name__}: "
            f"{', '.join(missing[:3])}"
        )
    for name, shape in expected.items():
        if tuple(header[name].shape) != shape:
            raise FileError(
                f"{folder.name!r}: {name} is {list(header[name].shape)} in the weights and {list(shape)} "
                f"by its config.json; one of them belongs to another model"
            )


def _check_parts(folder: Path) -> None:
    """Only classes of diffusers and transformers, only safetensors, in every part of a pipeline."""
    for name, entry in read_json(folder / "model_index.json").items():
        if name.startswith("_") or not isinstance(entry, list):
            continue
        if len(entry) != 2 or entry[0] not in _LIBRARIES:
            raise ConfigError(
                f"part {name!r} of {folder.name!r} is {json.dumps(entry)}; allowed are classes of diffusers "
                f"and transformers"
            )
        part = folder / name
        if entry[0] and part.is_dir() and any(part.glob("*.bin")) and not any(part.glob("*.safetensors")):
            weights_header(part)  # raises: pickles only


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
