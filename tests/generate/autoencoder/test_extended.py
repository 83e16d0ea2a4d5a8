from dataclasses import replace

import pytest
import torch

from fewer.core.errors import FileError
from fewer.generate.autoencoder.config import DCAutoencoderConfig
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.extended import extended, extended_config, load_own, own_parts, own_tensors

_SMALL = DCAutoencoderConfig(
    latent_channels=4,
    attention_head_dim=8,
    encoder_block_out_channels=(8, 8, 16),
    decoder_block_out_channels=(8, 8, 16),
    encoder_layers_per_block=(0, 1, 1),
    decoder_layers_per_block=(0, 1, 1),
    encoder_qkv_multiscales=((), (), ()),
    decoder_qkv_multiscales=((), (), ()),
)


def build(seed: int = 0, **changes: object) -> DCAutoencoder:
    torch.manual_seed(seed)
    return DCAutoencoder(replace(_SMALL, **changes)).eval()


def test_it_doubles_the_picture_and_keeps_the_latents() -> None:
    base = build()
    larger = extended(base, extended_config(base.config, 8))
    assert larger.config.spatial_compression_ratio == 2 * base.config.spatial_compression_ratio
    picture = torch.rand(1, 3, 24, 40)
    latents = larger.encode(picture)
    assert latents.shape == (1, 4, 3, 5) == base.encode(picture[..., ::2, ::2]).shape
    assert larger.decode(latents).shape == picture.shape


def test_what_is_coarse_is_shared_and_the_finest_old_stage_is_a_copy() -> None:
    base = build()
    larger = extended(base, extended_config(base.config, 8))
    assert larger.decoder.up_blocks[3] is base.decoder.up_blocks[2]
    assert larger.encoder.down_blocks[2] is base.encoder.down_blocks[1]
    copied, old = larger.decoder.up_blocks[2], base.decoder.up_blocks[1]
    assert copied is not old
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), old.parameters(), strict=True))
    own = {id(parameter) for part in own_parts(larger) for parameter in part.parameters()}
    assert not own & {id(parameter) for parameter in base.parameters()}


def test_own_tensors_make_another_base_draw_the_same() -> None:
    base = build()
    config = extended_config(base.config, 8)
    first = extended(base, config)
    tensors = {name: value.clone() for name, value in own_tensors(first).items()}
    second = load_own(extended(base, config), tensors)
    latents = torch.randn(1, 4, 3, 3)
    assert torch.equal(first.decode(latents), second.decode(latents))
    assert len(own_tensors(first)) == sum(1 for part in own_parts(first) for _ in part.parameters())


def test_what_does_not_fit_is_refused() -> None:
    larger = extended(build(), extended_config(_SMALL, 8))
    with pytest.raises(FileError, match="norm_out"):
        load_own(larger, {k: v for k, v in own_tensors(larger).items() if k != "decoder.norm_out.bias"})
    full = build(encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1))
    with pytest.raises(FileError, match="full resolution"):
        extended(full)
