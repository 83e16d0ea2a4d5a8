"""A text-to-image model on disk: diffusers' SanaPipeline layout, opened part by part.

model_index.json, transformer/, vae/, scheduler/, text_encoder/, tokenizer/. Our own folders may name the
text encoder as ["fewer", "smollm2-135m"], which lives in the user's cache, and add a fewer.json with how
the model wants to be used.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field

from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.conditional.for_sana import ConditionedSana, has_generators, load_conditioned
from fewer.generate.large_edition import LargeEdition, open_large
from fewer.generate.request import Side
from fewer.generate.sampling.few_steps import FewSteps, open_few_steps
from fewer.generate.text import INSTRUCTION, PromptEncoder, smollm2_folder
from fewer.generate.text.smollm2 import NAME as SMOLLM2
from fewer.generate.transformer import SanaTransformer

DEFAULT_MODEL = Path(__file__).parent / "default_model"
_PIPELINES = ("SanaPipeline", "SanaSprintPipeline", "SanaPAGPipeline")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """How a model wants to be used: the content of fewer.json, and what the scheduler's file says."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    text_layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Blocks of the language model that are used; all if absent."""
    text_length: Annotated[int, Field(ge=2, le=4096)] = 300
    """Positions of text that the transformer reads."""
    chi: bool = True
    """Trained with the complex human instruction before the prompt."""
    default_size: tuple[Side, Side] | None = None
    """(height, width) if nothing is asked for."""
    words: Literal["emoji"] | None = None
    """Whose captions it was trained on: prompts in other words are said in those (`reading/`)."""
    shift: Annotated[float, Field(gt=0, le=100)] = 3.0
    guidance: Annotated[float, Field(ge=0, le=100)] = 4.5


@dataclass(frozen=True, slots=True)
class Parts:
    """The three networks and the settings."""

    transformer: SanaTransformer | ConditionedSana
    """The second where time and text also drive generated weights: the same calls."""
    autoencoder: DCAutoencoder
    encoder: PromptEncoder
    settings: ModelSettings
    few_steps: FewSteps | None = None
    """With it one to four steps are enough: an adapter that is attached when it is asked for."""
    large: LargeEdition | None = None
    """With it pictures of twice the side are drawn, in several shapes."""


def open_parts(
    model: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    text_encoder: Path | None = None,
    autoencoder: Path | None = None,
    cache: Path | None = None,
    transformer: SanaTransformer | None = None,
) -> Parts:
    """Opens a model's folder, "default" for the built-in one, or a transformer's file beside given parts.

    `text_encoder`, `autoencoder` and a `transformer` that is open already replace the folder's own.
    Raises `FileError` for what is missing or damaged and `ConfigError` for parts that don't fit together.
    """
    path = DEFAULT_MODEL if str(model) == "default" else Path(model)
    if path == DEFAULT_MODEL and not path.is_dir():
        raise FileError("this installation has no built-in model; pass --model FOLDER", missing=True)
    if not path.exists():
        raise FileError(f"model {path.name!r} is neither a folder nor a file; check the path", missing=True)
    if path.is_file() and (text_encoder is None or autoencoder is None):
        raise ConfigError(
            f"{path.name!r} holds a transformer alone; give its --autoencoder and --text-encoder folders too"
        )
    index = read_index(path) if path.is_dir() else {}
    settings = read_settings(path) if path.is_dir() else ModelSettings()
    # The decoder and the language model overflow fp16: they read it as bf16 (or fp32 on a CPU).
    wide = {torch.float16: torch.bfloat16 if device.type == "cuda" else torch.float32}.get(dtype, dtype)
    network = _open_transformer(path, dtype, device) if transformer is None else transformer
    decoder = DCAutoencoder.load(autoencoder or path / "vae", wide, device)
    encoder = _open_encoder(path, index, settings, text_encoder, cache, wide, device)
    few_steps = open_few_steps(path) if path.is_dir() else None
    ratio = decoder.config.spatial_compression_ratio * network.params.patch_size
    # Its stage belongs to the folder's own autoencoder.
    large = open_large(path, 2 * ratio) if path.is_dir() and autoencoder is None else None
    settings = _complete(settings, network, decoder, encoder)
    return Parts(network, decoder, encoder, settings, few_steps, large)


def _open_transformer(
    path: Path, dtype: torch.dtype, device: torch.device
) -> SanaTransformer | ConditionedSana:
    if has_generators(path / "transformer"):
        return load_conditioned(path / "transformer", dtype, device)
    return SanaTransformer.load(path, dtype, device)


def open_styled(model: str | Path, style: str, dtype: torch.dtype, device: torch.device) -> SanaTransformer:
    """A model's transformer with the style FILE[:SCALE] merged in fp32, which its file was trained on.

    Raises `ConfigError` for a model with generated weights of its own, and what `wear_style` raises.
    """
    from fewer.generate.conditional.style import wear_style

    path = DEFAULT_MODEL if str(model) == "default" else Path(model)
    transformer = _open_transformer(path, torch.float32, torch.device("cpu"))
    if isinstance(transformer, ConditionedSana):
        raise ConfigError("this model has generated weights (adaln+can); a style needs one without")
    return wear_style(transformer, style).to(device, dtype)


def read_index(folder: Path) -> dict[str, object]:
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise ConfigError(f"{folder.name!r} holds a {kind!r}; allowed: {', '.join(_PIPELINES)}")
    return index


def read_settings(folder: Path) -> ModelSettings:
    """fewer.json over the scheduler's file over the defaults."""
    given: dict[str, object] = {}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.exists():
        config = read_json(scheduler)
        shift = config.get("flow_shift", config.get("shift"))
        given |= {} if shift is None else {"shift": shift}
    own = folder / "fewer.json"
    if own.exists():
        given |= read_json(own)
    return validate(ModelSettings, given)


def _open_encoder(
    path: Path,
    index: dict[str, object],
    settings: ModelSettings,
    text_encoder: Path | None,
    cache: Path | None,
    dtype: torch.dtype,
    device: torch.device,
) -> PromptEncoder:
    tokenizer = None
    if text_encoder is None and index.get("text_encoder") == ["fewer", SMOLLM2]:
        text_encoder = smollm2_folder(cache)
    elif text_encoder is None:
        text_encoder, tokenizer = path / "text_encoder", path / "tokenizer"
    return PromptEncoder.load(
        text_encoder,
        tokenizer,
        dtype=dtype,
        device=device,
        length=settings.text_length,
        instruction=INSTRUCTION if settings.chi else None,
        layers=settings.text_layers,
    )


def _complete(
    settings: ModelSettings,
    transformer: SanaTransformer | ConditionedSana,
    autoencoder: DCAutoencoder,
    encoder: PromptEncoder,
) -> ModelSettings:
    params, latents = transformer.params, autoencoder.config.latent_channels
    if encoder.channels != params.caption_channels:
        raise ConfigError(
            f"the text encoder gives {encoder.channels} channels, the transformer was built for "
            f"{params.caption_channels}; pair each Sana with its own text encoder"
        )
    if latents != params.in_channels:
        raise ConfigError(
            f"the autoencoder has {latents} latent channels, the transformer {params.in_channels}"
        )
    if settings.default_size is not None:
        return settings
    side = params.sample_size * autoencoder.config.spatial_compression_ratio
    return replace(settings, default_size=(side, side))
