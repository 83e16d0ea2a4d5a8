"""Models on disk that the verbs work on: ours, diffusers' and transformers', opened whole or as an empty
frame.

A folder is told by its `config.json`: `_class_name` is diffusers' (a SanaTransformer2DModel opens as ours),
`architectures` transformers'. A pipeline's folder (model_index.json) brings its text encoder for calibration.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.class_pictures import CLASS_NAME
from fewer.generate.transformer import SanaTransformer
from fewer.quantize.for_diffusers import (
    DENOISERS,
    DiffusersPipeline,
    build_denoiser,
    denoiser_of,
    open_denoiser,
    weights_header,
)

logger = logging.getLogger(__name__)

SANA = ("SanaTransformer2DModel", "SanaTransformer")


@dataclass(slots=True)
class OpenModel:
    """A 16-bit model, its configuration, and the pipeline around it where there is one."""

    module: nn.Module
    config: dict[str, object]
    folder: Path | None
    pipeline: object | None = None
    class_names: tuple[str, ...] = ()
    """What a class-conditional model can draw."""
    autoencoder: DCAutoencoder | None = None
    """What turns a class-conditional model's latents into pictures, where it draws latents."""

    def draw(self, what: str, seed: int) -> object:
        """A Pillow picture of a prompt or a class; raises `ConfigError` if the model draws nothing."""
        if self.pipeline is not None:
            return self.pipeline(what, seed=seed).images[0]  # pyright: ignore
        if not self.class_names:
            raise ConfigError("this model draws no pictures")
        from fewer.generate.conditional.draw import draw_class, to_pictures

        latents = torch.empty(0)
        for step in draw_class(self.module, self.class_names.index(what), [seed]):
            latents = step.latents
        return to_pictures(latents if self.autoencoder is None else self.autoencoder.decode(latents))[0]


def open_model(model: str, dtype: torch.dtype, device: torch.device) -> OpenModel:
    """Opens "default", a pipeline's folder, or a model's folder; nothing is downloaded.

    Raises `FileError` for a missing folder or configuration, `ConfigError` for a model class that no library
    has.
    """
    folder = Path(model)
    if model == "default" or (folder / "model_index.json").exists():
        return _open_pipeline(model, folder, dtype, device)
    if not folder.is_dir():
        raise FileError(f"model {folder.name!r} is no folder; check the path", missing=True)
    if not (folder / "config.json").exists() and (part := denoiser_of(folder)):
        folder = folder / part
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        raise ConfigError(f"{folder.name!r} is quantized already; start from its 16-bit original")
    if config.get("_class_name") == CLASS_NAME:
        return _open_class_model(folder, config, dtype, device)
    if config.get("_class_name") in SANA:
        module = SanaTransformer.load(folder, dtype, device)
        return OpenModel(module, _sana_config(module), folder)
    if "_class_name" in config:
        return OpenModel(open_denoiser(folder, config, dtype, device), config, folder)
    if "architectures" not in config and "model_type" not in config:
        raise ConfigError(f"config.json of {folder.name!r} names neither a _class_name nor architectures")
    return OpenModel(_open_language_model(folder, config, dtype).to(device).eval(), config, folder)


def _open_class_model(
    folder: Path, config: dict[str, object], dtype: torch.dtype, device: torch.device
) -> OpenModel:
    """A network of `fewer train class-conditional`, with the autoencoder it may have been trained behind."""
    from fewer.generate.conditional.formats import load_folder

    module, names = load_folder(folder)
    stage = folder / "autoencoder"
    decoder = DCAutoencoder.load(stage, device=device).float() if stage.is_dir() else None
    return OpenModel(module.to(device, dtype), config, folder, class_names=names, autoencoder=decoder)


def _open_pipeline(model: str, folder: Path, dtype: torch.dtype, device: torch.device) -> OpenModel:
    """The built-in model, a pipeline in Sana's layout, or one of diffusers' own."""
    kind = "SanaPipeline" if model == "default" else read_json(folder / "model_index.json").get("_class_name")
    if "Sana" in str(kind):
        from fewer.generate.pipeline import TextToImage

        pipeline = TextToImage.load(model, device=str(device), dtype=name_of(dtype))
        if not isinstance(pipeline.transformer, SanaTransformer):
            raise ConfigError("this model has generated weights (adaln+can); only plain ones are quantized")
        return OpenModel(pipeline.transformer, _sana_config(pipeline.transformer), folder, pipeline)
    part = denoiser_of(folder)
    if part is None:
        raise FileError(
            f"the pipeline {folder.name!r} has no folder {' or '.join(DENOISERS)} with a config.json",
            missing=True,
        )
    config = read_json(folder / part / "config.json")
    if "_class_name" not in config:
        raise ConfigError(f"{part}/config.json of {folder.name!r} names no _class_name")
    module = open_denoiser(folder / part, config, dtype, device)
    return OpenModel(module, config, folder, DiffusersPipeline(folder, part, module, dtype))


def _open_language_model(folder: Path, config: dict[str, object], dtype: torch.dtype) -> nn.Module:
    weights_header(folder)
    kind = _language_class(config)
    try:
        module, found = kind.from_pretrained(  # pyright: ignore
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise FileError(f"{folder.name!r} cannot be opened as a language model: {reason}") from error
    if missing := sorted(found["missing_keys"]):  # transformers would have drawn them at random
        raise FileError(
            f"the weights of {folder.name!r} lack {len(missing)} tensors of a {type(module).__name__}: "
            f"{', '.join(missing[:3])}"
        )
    return module


def _language_class(config: dict[str, object]) -> type:
    """The class that the configuration names, an encoder's too; a decoder with a head where it names none."""
    import transformers

    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    return transformers.AutoModelForCausalLM


def empty_model(config: dict[str, object], model_class: str) -> nn.Module:
    """A model of that configuration with any weights, to put a checkpoint into."""
    if config.get("_class_name") in SANA or model_class in SANA:
        from fewer.core.config import validate
        from fewer.generate.transformer.params import SanaParams

        if "fewer_params" in config:
            return SanaTransformer(validate(SanaParams, config["fewer_params"]))
        if "_class_name" in config:  # quantized as diffusers' own module
            return build_denoiser(config)
        raise ConfigError("the Sana checkpoint has no parameters in its configuration")
    if config.get("_class_name") == CLASS_NAME:
        from fewer.generate.conditional.formats import build_from_config

        return build_from_config(config)
    if "_class_name" in config:
        return build_denoiser(config)
    from transformers import AutoConfig

    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError("the configuration names no model class")
    try:
        read = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
        chosen = _language_class(config)
        make = getattr(chosen, "from_config", None) or chosen._from_config  # pyright: ignore
        return make(read)
    except Exception as error:  # its validators have exceptions of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(f"the configuration describes no model of type {kind!r}: {reason}") from error


def _sana_config(module: SanaTransformer) -> dict[str, object]:
    import dataclasses

    return {"_class_name": "SanaTransformer2DModel", "fewer_params": dataclasses.asdict(module.params)}


def name_of(dtype: torch.dtype) -> Literal["bf16", "fp16", "fp32"]:
    """Its name on the command line."""
    names: dict[torch.dtype, Literal["bf16", "fp16", "fp32"]]
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names[dtype]
