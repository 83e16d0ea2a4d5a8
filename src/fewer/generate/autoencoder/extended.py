"""One stage more on an autoencoder: twice the side of the picture from the very same latents.

A DC-AE of f16 becomes one of f32. Everything at a coarser grid than its second stage is shared, module by
module, so that a transformer of the first draws for the second as well; new are the outermost stage of both
halves and what lies next to it in the decoder. The result is an ordinary DC-AE, configuration included.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from fewer.core.errors import FileError
from fewer.generate.autoencoder.config import DCAutoencoderConfig
from fewer.generate.autoencoder.dc_ae import DCAutoencoder

OWN = ("encoder.conv_in.", "encoder.down_blocks.1.", "decoder.up_blocks.1.", "decoder.up_blocks.2.",
       "decoder.norm_out.", "decoder.conv_out.")  # fmt: skip
"""Beginnings of the names of what is not shared."""


def extended_config(
    config: DCAutoencoderConfig, width: int = 64, encoder_depth: int = 1, decoder_depth: int = 2
) -> DCAutoencoderConfig:
    """The configuration with one stage of `width` more in front. Raises `ConfigError` where it cannot be."""
    scales = ((), *config.encoder_qkv_multiscales), ((), *config.decoder_qkv_multiscales)
    kinds = []
    for given in (config.encoder_block_types, config.decoder_block_types):
        whole = (given,) * config.stages if isinstance(given, str) else given
        kinds.append(("ResBlock", *whole))
    norms, activations = (
        value if isinstance(value, str) else (value[0], *value)
        for value in (config.decoder_norm_types, config.decoder_act_fns)
    )
    return replace(
        config,
        encoder_block_types=kinds[0],
        decoder_block_types=kinds[1],
        encoder_block_out_channels=(width, width, *config.encoder_block_out_channels[1:]),
        decoder_block_out_channels=(width, width, *config.decoder_block_out_channels[1:]),
        encoder_layers_per_block=(0, encoder_depth, *config.encoder_layers_per_block[1:]),
        decoder_layers_per_block=(0, decoder_depth, *config.decoder_layers_per_block[1:]),
        encoder_qkv_multiscales=scales[0],
        decoder_qkv_multiscales=scales[1],
        decoder_norm_types=norms,
        decoder_act_fns=activations,
    )


def extended(base: DCAutoencoder, config: DCAutoencoderConfig | None = None) -> DCAutoencoder:
    """An autoencoder of twice the compression that shares the modules of `base`; the rest is fresh.

    Only stages without blocks at full resolution (as those of the built-in model) have room in front.
    Raises `FileError` for one that has them.
    """
    if base.config.encoder_layers_per_block[0] or base.config.decoder_layers_per_block[0]:
        raise FileError("only an autoencoder without blocks at full resolution takes one stage more")
    larger = DCAutoencoder(config or extended_config(base.config))
    for stage in range(1, base.config.stages):
        larger.encoder.down_blocks[stage + 1] = base.encoder.down_blocks[stage]
        shared = base.decoder.up_blocks[stage]
        # The finest stage of the old decoder goes on learning in the new one: a copy.
        larger.decoder.up_blocks[stage + 1] = copy.deepcopy(shared) if stage == 1 else shared
    larger.encoder.conv_out = base.encoder.conv_out
    larger.decoder.conv_in = base.decoder.conv_in
    parameter = next(base.parameters())
    for part in own_parts(larger):
        part.to(parameter.device, parameter.dtype)
    return larger


def own_parts(larger: DCAutoencoder) -> tuple[nn.Module, ...]:
    """What an extended autoencoder does not share."""
    encoder, decoder = larger.encoder, larger.decoder
    return (
        encoder.conv_in, encoder.down_blocks[1],
        decoder.up_blocks[1], decoder.up_blocks[2], decoder.norm_out, decoder.conv_out,
    )  # fmt: skip


def own_tensors(larger: DCAutoencoder) -> dict[str, Tensor]:
    """The tensors of those parts, by name."""
    return {name: tensor for name, tensor in larger.state_dict().items() if name.startswith(OWN)}


def load_own(larger: DCAutoencoder, tensors: Mapping[str, Tensor]) -> DCAutoencoder:
    """Fills those parts; returns the autoencoder. Raises `FileError` for tensors that do not fit."""
    wanted = own_tensors(larger)
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    if wrong:
        raise FileError(f"the extension does not fit this autoencoder: {', '.join(wrong[:10])}")
    larger.load_state_dict(dict(tensors), strict=False)
    return larger
