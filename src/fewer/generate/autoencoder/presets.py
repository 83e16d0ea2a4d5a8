"""Small autoencoders to train on one's own pictures: f16 to f128, widths that a laptop can move.

All follow the published pattern (residual blocks above 1/8 of the side, linear attention below; latents
hold 1/8 to 1/32 of the picture's numbers), at 1/4 to 1/2 of the published widths.
"""

from dataclasses import replace
from typing import Literal

from fewer.generate.autoencoder.config import DCAutoencoderConfig

Preset = Literal["f16", "f32", "f64", "f128"]

_WIDTHS: dict[str, tuple[int, ...]] = {
    "f16": (32, 64, 128, 256, 512),
    "f32": (32, 64, 128, 128, 256, 512),
    "f64": (32, 64, 128, 128, 256, 256, 512),
    "f128": (32, 64, 128, 128, 256, 256, 512, 512),
}
_LATENT_CHANNELS = {"f16": 32, "f32": 32, "f64": 128, "f128": 512}


def preset_config(name: Preset, *, in_channels: int = 3, structured: bool = False) -> DCAutoencoderConfig:
    """Configuration of a preset. `structured` turns the latent shortcuts off and allows prefixes (1.5)."""
    widths = _WIDTHS[name]
    stages = len(widths)
    local = min(3, stages - 2)
    blocks = ("ResBlock",) * local + ("EfficientViTBlock",) * (stages - local)
    config = DCAutoencoderConfig(
        in_channels=in_channels,
        latent_channels=_LATENT_CHANNELS[name],
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * stages,
        decoder_layers_per_block=(2,) * stages,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        decoder_conv_act_fn="silu",
    )
    return with_prefixes(config) if structured else config


def with_prefixes(config: DCAutoencoderConfig) -> DCAutoencoderConfig:
    """The same with structured latents: eight prefixes, no shortcuts at the latents (spec §2.5)."""
    step = max(config.latent_channels // 8, 1)
    prefixes = tuple(range(step, config.latent_channels + 1, step))
    return replace(config, encoder_out_shortcut=False, decoder_in_shortcut=False, latent_prefixes=prefixes)
