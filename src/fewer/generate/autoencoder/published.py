"""The published DC-AE models: their configurations (spec §2.3) and scaling factors, by name.

`in` models saw ImageNet, `mix` models four data sets, `sana` models serve Sana; `lite` shares Sana's
encoder; `1.5` has structured latents. Nothing is downloaded: the names say which config a file needs.
"""

import re
from dataclasses import dataclass

from fewer.core.errors import ConfigError
from fewer.generate.autoencoder.config import DCAutoencoderConfig

SCALING_FACTORS = {
    "f32c32-in": 0.3189,
    "f32c32-mix": 0.4552,
    "f64c128-in": 0.2889,
    "f64c128-mix": 0.4538,
    "f128c512-in": 0.4883,
    "f128c512-mix": 0.3620,
    "f32c32-sana": 0.41407,
    "lite-f32c32": 0.41407,
}

STRUCTURED_FACTORS = {"1.5-f64c128": 0.5935}
"""What the authors' USiT models (DC-Gen) were trained with; none is told for 1.5-f32c128."""

_HUB_NAME = re.compile(
    r"(dc-ae-)?(?P<family>lite-|1\.5-)?(?P<size>f\d+c\d+)(?P<data>-(in|mix|sana))?"
    r"(?P<edition>-\d+\.\d+)?(-diffusers)?"
)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What differs between the models that share a pattern."""

    latent_channels: int
    widths: tuple[int, ...]


def published_config(name: str) -> DCAutoencoderConfig:
    """Configuration of a published model, such as `f32c32-sana`, `f64c128-in` or `1.5-f32c128`.

    Accepts the hub's spelling too (`mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers`). Raises `ConfigError`.
    """
    short = _short_name(name)
    if short not in published_names():
        raise ConfigError(f"no published autoencoder is {name!r}; known: {', '.join(published_names())}")
    if short.startswith("1.5"):
        return _structured(7 if "f64" in short else 6, STRUCTURED_FACTORS.get(short, 1.0))
    if short in ("f32c32-sana", "lite-f32c32"):
        return _sana(lite=short.startswith("lite"))
    shape = {
        "f32c32": _Shape(32, (128, 256, 512, 512, 1024, 1024)),
        "f64c128": _Shape(128, (128, 256, 512, 512, 1024, 1024, 2048)),
        "f128c512": _Shape(512, (128, 256, 512, 512, 1024, 1024, 2048, 2048)),
    }[short.split("-")[0]]
    return _first_edition(shape, SCALING_FACTORS[short])


def published_names() -> tuple[str, ...]:
    """All names that `published_config` knows."""
    return (*SCALING_FACTORS, "1.5-f32c128", "1.5-f64c128")


def _short_name(name: str) -> str:
    """The hub's spelling without owner, edition and layout; what is spelt otherwise stays as it is."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    parts = _HUB_NAME.fullmatch(last.lower())
    if parts is None:
        return last
    family, size, data = parts["family"] or "", parts["size"], parts["data"] or ""
    if parts["edition"] == "-1.5" and not data:  # the authors' own order: dc-ae-f64c128-1.5
        family = "1.5-"
    # There is one lite model and one 1.5 of each size, whatever data their names go on to tell.
    return family + size if family else size + data


def _first_edition(shape: _Shape, scaling_factor: float) -> DCAutoencoderConfig:
    """in-1.0 and mix-1.0: batch norm and ReLU in the three large stages of the decoder."""
    deep = len(shape.widths) - 3
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * deep
    return DCAutoencoderConfig(
        latent_channels=shape.latent_channels,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=shape.widths,
        decoder_block_out_channels=shape.widths,
        encoder_layers_per_block=(0, 4, 8) + (2,) * deep,
        decoder_layers_per_block=(0, 5, 10) + (2,) * deep,
        encoder_qkv_multiscales=((),) * len(shape.widths),
        decoder_qkv_multiscales=((),) * len(shape.widths),
        decoder_norm_types=("batch_norm",) * 3 + ("rms_norm",) * deep,
        decoder_act_fns=("relu",) * 3 + ("silu",) * deep,
        scaling_factor=scaling_factor,
    )


def _sana(lite: bool) -> DCAutoencoderConfig:
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    return DCAutoencoderConfig(
        encoder_block_types=blocks,
        decoder_block_types="ResBlock" if lite else blocks,
        decoder_layers_per_block=(0, 3, 5, 4, 4, 4) if lite else (3,) * 6,
        decoder_qkv_multiscales=((),) * 6 if lite else ((), (), (), (5,), (5,), (5,)),
        downsample_block_type="conv",
        upsample_block_type="pixel_shuffle" if lite else "interpolate",
        decoder_conv_act_fn="silu" if lite else "relu",
        scaling_factor=SCALING_FACTORS["f32c32-sana"],
    )


def _structured(stages: int, scaling_factor: float) -> DCAutoencoderConfig:
    """1.5: residual blocks only, no shortcut at the latents, prefixes of 16, 32, ..., 128 channels."""
    widths = (128, 256, 512, 512, 1024, 1024, 1024)[:stages]
    layers = (0, 5, 10, 4, 4, 4, 4)[:stages]
    return DCAutoencoderConfig(
        latent_channels=128,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        decoder_conv_act_fn="silu",
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
        latent_prefixes=tuple(range(16, 129, 16)),
        scaling_factor=scaling_factor,
    )
