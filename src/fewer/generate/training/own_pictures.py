"""Training on a user's folder: open a model, encode the pictures, train, write what came out."""

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from fewer.core.device import isolated_randomness, pick_device, seeded
from fewer.core.errors import ConfigError
from fewer.core.files import copy_folder, write_json
from fewer.core.progress import Progress
from fewer.core.train import FitResult, rank
from fewer.generate.conditional.for_sana import ConditionedSana, condition_sana, save_conditioned
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.lora import write_lora
from fewer.generate.model_folder import DEFAULT_MODEL, ModelSettings, Parts, open_parts
from fewer.generate.training.buckets import bucket_shapes
from fewer.generate.training.command import TrainLoraRequest, TrainSanaRequest, training_of
from fewer.generate.training.command_style import TrainStyleRequest
from fewer.generate.training.encoded import EncodedSet, assemble
from fewer.generate.training.folder import count_buckets, encode_pictures, read_folder
from fewer.generate.training.lora import train_lora
from fewer.generate.training.transformer import train_transformer
from fewer.generate.transformer.initialise import initialise
from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.sana import SanaTransformer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model's parts, the pictures as latents with their captions, and where to train."""

    parts: Parts
    data: EncodedSet
    device: torch.device


def train_sana_on_folder(request: TrainSanaRequest, progress: Progress) -> dict[str, object]:
    """Goes on with a model, or with `fresh` starts a new transformer for it; writes `output/model`."""
    if request.data is None:
        raise ConfigError("give --data DIR with your own pictures")
    prepared = prepare(request, request.data, request.size, progress)
    parts = prepared.parts
    transformer: SanaTransformer | ConditionedSana = parts.transformer
    if request.fresh:
        transformer = _new_transformer(parts, request.fresh, request.width, request.seed)
    conditioned = _conditioned(transformer, request)
    result = train_transformer(
        transformer if conditioned is None else conditioned,
        prepared.data,
        training_of(request, parts.settings.shift),
        device=prepared.device,
        checkpoints=request.output / "run",
        resume=request.resume,
        progress=progress,
    )
    folder = request.output / "model"
    settings = replace(parts.settings, words=None)  # its captions are the user's own from now on
    if request.size is not None:
        settings = replace(settings, default_size=(request.size, request.size))
    if rank() == 0:
        _write_beside(folder, _source_of(request.model), settings)
        if isinstance(transformer, SanaTransformer) and conditioned is None:
            transformer.cpu().save(folder / "transformer")
        elif conditioned is not None:
            save_conditioned(conditioned.cpu(), folder / "transformer")
    return report(folder, result, prepared.data)


def _conditioned(
    transformer: SanaTransformer | ConditionedSana, request: TrainSanaRequest
) -> ConditionedSana | None:
    """The transformer with generated weights, where they are asked for or already there."""
    wanted = isinstance(transformer, ConditionedSana) or request.conditioning == "adaln+can"
    if wanted and request.recompute:
        raise ConfigError("--recompute does not go with generated weights (adaln+can); leave it out")
    if isinstance(transformer, ConditionedSana):
        return transformer.requires_grad_(True)
    if not wanted:
        return None
    with isolated_randomness(request.seed):
        return ConditionedSana(condition_sana(transformer, ConditionPlan(rank=request.can_rank)))


def train_lora_on_folder(request: TrainLoraRequest, progress: Progress) -> dict[str, object]:
    """Trains an adapter for a model; writes `output/pytorch_lora_weights.safetensors`."""
    prepared = prepare(request, request.data, request.size, progress)
    transformer = prepared.parts.transformer
    if isinstance(transformer, ConditionedSana):
        raise ConfigError("this model has generated weights (adaln+can); a LoRA is trained on one without")
    adapter, result = train_lora(
        transformer,
        prepared.data,
        training_of(request, prepared.parts.settings.shift),
        rank=request.rank,
        targets=request.targets,
        device=prepared.device,
        checkpoints=request.output / "run",
        resume=request.resume,
        progress=progress,
    )
    path = request.output / "pytorch_lora_weights.safetensors"
    if rank() == 0:
        write_lora(path, adapter)
    return report(path, result, prepared.data)


def prepare(
    request: TrainSanaRequest | TrainLoraRequest | TrainStyleRequest,
    folder: Path,
    size: int | None,
    progress: Progress,
) -> Prepared:
    """Opens the model and encodes the pictures of a folder."""
    pictures = read_folder(folder)
    device = pick_device(request.device)
    parts = open_parts(request.model, dtype=torch.float32, device=device)
    unit = parts.autoencoder.config.spatial_compression_ratio * parts.transformer.params.patch_size
    side = size or (parts.settings.default_size or (512, 512))[0]
    began = time.monotonic()
    latents = encode_pictures(pictures, parts.autoencoder, bucket_shapes(side, unit), progress)
    captions = [picture.captions for picture in pictures]
    data = assemble(latents, captions, parts.encoder, request.caption_mode, progress)
    progress.say(f"{len(pictures)} pictures encoded in {time.monotonic() - began:.0f} s")
    return Prepared(parts, data, device)


def _new_transformer(parts: Parts, depth: int, width: int, seed: int) -> SanaTransformer:
    latent_side = (parts.settings.default_size or (512, 512))[
        0
    ] // parts.autoencoder.config.spatial_compression_ratio
    channels = parts.autoencoder.config.latent_channels
    params = SanaParams(
        in_channels=channels,
        out_channels=channels,
        heads=width // 32,
        depth=depth,
        cross_heads=width // 32,
        cross_head_dim=32,
        caption_channels=parts.encoder.channels,
        sample_size=latent_side,
        interpolation_scale=1.0,
        qk_norm=True,
    )
    with isolated_randomness(seed):
        return initialise(SanaTransformer(params), seeded(seed, 5))


def _source_of(model: str) -> Path:
    return DEFAULT_MODEL if model == "default" else Path(model)


def _write_beside(folder: Path, source: Path, settings: ModelSettings) -> None:
    """Copies everything of a model folder except its transformer, so that the result is a model by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("model_index.json", "vae", "scheduler", "text_encoder", "tokenizer"):
        found = source / part
        if found.is_dir():
            copy_folder(found, folder / part)
        elif found.is_file():
            shutil.copyfile(found, folder / part)
    write_json(folder / "fewer.json", asdict(settings))


def report(output: Path, result: FitResult, data: EncodedSet) -> dict[str, object]:
    """What every training on a folder prints."""
    last = result.losses[-50:]
    return {
        "output": str(output),
        "steps": result.step,
        "loss": sum(last) / len(last) if last else None,
        "first_loss": result.losses[0] if result.losses else None,
        "pictures": len(data.latents),
        "captions": data.text.tokens.shape[0] - 1,
        "buckets": count_buckets(data.latents),
        "seconds": result.seconds,
    }
