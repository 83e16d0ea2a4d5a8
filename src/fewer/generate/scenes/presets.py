"""The sizes in which the built-in model is trained: one for a GPU, one for two CPU cores."""

from dataclasses import dataclass, field, replace
from typing import Literal

from fewer.core.errors import ConfigError
from fewer.generate.autoencoder.config import DCAutoencoderConfig
from fewer.generate.scenes.concepts import CONCEPTS
from fewer.generate.scenes.vocabulary import SMALL_VOCABULARY
from fewer.generate.training.transformer import TransformerTraining
from fewer.generate.transformer.params import SanaParams

# Sixteen concepts that nobody mistakes for one another: what half an hour of CPU time can hold.
_FEW = (
    "red-apple", "banana", "strawberry", "watermelon", "pizza", "doughnut", "cat-face", "dog-face", "frog",
    "panda", "fire", "star", "red-heart", "rocket", "bus", "deciduous-tree",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderTraining:
    """How the scenes' autoencoder is trained: on cut-outs that touch a sprite."""

    steps: int
    batch: int
    crop: int
    learning_rate: float
    compiled: bool = False
    """On a GPU: each block compiled."""
    minutes: float | None = None
    """Ends after so much time, or after `steps` if that is sooner."""
    latent_noise: float = 0.05
    """Noise on the latents in shares of their spread: the decoder learns to forgive the transformer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmojiPreset:
    """Everything that decides what a built-in model is made of."""

    side: int
    """Pixels of a scene's side."""
    concepts: dict[str, str] | None
    """Package name to word; None takes every distinct concept that all styles draw."""
    styles: tuple[str, ...]
    autoencoder: DCAutoencoderConfig
    autoencoder_training: AutoencoderTraining
    transformer: SanaParams
    training: TransformerTraining
    scenes: int
    """Size of the pool that is encoded ahead."""
    captions_per_scene: int
    text_layers: int
    text_length: int
    shift: float
    """Shift of the noise levels when sampling."""
    guidance: float
    sprite_side: int = field(default=112)


def preset(name: str) -> EmojiPreset:
    """ "emoji" for a GPU, "emoji-512" for its large edition, "emoji-cpu" for two cores, "emoji-test" to test.

    Raises `ConfigError` for another name.
    """
    builders = {"emoji": _gpu, "emoji-512": _large, "emoji-cpu": _cpu, "emoji-test": _test}
    if name not in builders:
        raise ConfigError(f"preset {name!r} is not known; allowed: {', '.join(builders)}")
    return builders[name]()


def within(preset: EmojiPreset, minutes: float | None, autoencoder_share: float = 0.3) -> EmojiPreset:
    """The same within a time, three tenths of it for the autoencoder."""
    if minutes is None:
        return preset
    first = autoencoder_share * minutes
    return replace(
        preset,
        autoencoder_training=replace(preset.autoencoder_training, steps=10**6, minutes=first),
        training=replace(preset.training, steps=10**6, minutes=minutes - first),
    )


def _autoencoder(
    widths: tuple[int, ...],
    decoder_depth: int | tuple[int, ...],
    latent_channels: int = 32,
    up: Literal["pixel_shuffle", "interpolate"] = "interpolate",
) -> DCAutoencoderConfig:
    kinds = ("ResBlock",) * (len(widths) - 1) + ("EfficientViTBlock",)
    none = ((),) * len(widths)
    depths = decoder_depth if isinstance(decoder_depth, tuple) else (decoder_depth,) * (len(widths) - 1)
    return DCAutoencoderConfig(
        latent_channels=latent_channels,
        attention_head_dim=min(32, widths[-1]),
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(0,) + (1,) * (len(widths) - 1),
        decoder_layers_per_block=(0, *depths),
        encoder_qkv_multiscales=none,
        decoder_qkv_multiscales=none,
        upsample_block_type=up,
        decoder_conv_act_fn="silu",
    )


def _transformer(heads: int, depth: int, sample_size: int, channels: int = 32) -> SanaParams:
    return SanaParams(
        in_channels=channels,
        out_channels=channels,
        heads=heads,
        depth=depth,
        cross_heads=heads,
        cross_head_dim=32,
        caption_channels=576,
        sample_size=sample_size,
        interpolation_scale=1.0,
        qk_norm=True,
    )


def _gpu() -> EmojiPreset:
    return EmojiPreset(
        side=256,
        concepts=CONCEPTS,
        styles=("glossy", "flat", "soft 3d"),
        # Pixel shuffle: each of the four pixels that one place becomes has weights of its own: sharp edges.
        autoencoder=_autoencoder((64, 64, 128, 256, 256), (2, 2, 1, 1), up="pixel_shuffle"),
        autoencoder_training=AutoencoderTraining(
            steps=8000, batch=128, crop=128, learning_rate=8e-4, compiled=True, latent_noise=0.025
        ),
        transformer=_transformer(12, 12, 16),
        training=TransformerTraining(
            steps=6000,
            batch=256,
            learning_rate=1e-3,
            warmup=200,
            ema_decay=0.998,
            shift=1.5,
            dtype="bf16",
            compiled=True,
            checkpoint_every=1500,
        ),
        scenes=196608,
        captions_per_scene=2,
        text_layers=6,
        text_length=40,
        shift=1.5,
        guidance=3.5,
        sprite_side=200,
    )


def _large() -> EmojiPreset:
    """What `fewer train large` adds to a model of `_gpu`: its autoencoder and its transformer stay."""
    small = _gpu()
    return replace(
        small,
        side=512,
        autoencoder_training=replace(small.autoencoder_training, batch=64, crop=256, learning_rate=1e-3),
        training=replace(small.training, warmup=50, ema_decay=0.995),
        scenes=49152,
        sprite_side=400,
    )


def _cpu() -> EmojiPreset:
    return EmojiPreset(
        side=64,
        concepts={name: SMALL_VOCABULARY[name] for name in _FEW},
        styles=("glossy", "flat", "soft 3d"),
        autoencoder=_autoencoder((32, 32, 64, 128, 128), 2),
        autoencoder_training=AutoencoderTraining(steps=1500, batch=8, crop=64, learning_rate=1.6e-3),
        # Sixteen tokens. Patches of two at 128 px make as many, but 128 numbers a token are too many for this
        # width: after 600 steps backgrounds were still mottled.
        transformer=_transformer(5, 6, 4),
        training=TransformerTraining(
            steps=4600,
            batch=32,
            learning_rate=1.5e-3,
            warmup=100,
            ema_decay=0.997,
            dtype="fp32",
            checkpoint_every=100,
        ),
        scenes=4096,
        captions_per_scene=1,
        text_layers=6,
        text_length=32,
        shift=1.0,
        guidance=2.0,
    )


def _test() -> EmojiPreset:
    return EmojiPreset(
        side=32,
        concepts=None,
        styles=("glossy", "flat", "soft 3d"),
        autoencoder=_autoencoder((8, 8, 16), 1, latent_channels=4),
        autoencoder_training=AutoencoderTraining(steps=4, batch=2, crop=16, learning_rate=1e-3),
        transformer=_transformer(1, 1, 8, channels=4),
        training=TransformerTraining(steps=4, batch=4, learning_rate=1e-3, dtype="fp32", ema_decay=0.9),
        scenes=12,
        captions_per_scene=1,
        text_layers=1,
        text_length=16,
        shift=1.0,
        guidance=2.0,
        sprite_side=24,
    )
