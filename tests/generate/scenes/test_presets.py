"""Presets fit together."""

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.scenes.presets import preset
from fewer.generate.transformer.sana import SanaTransformer


@pytest.mark.parametrize("name", ["emoji", "emoji-512", "emoji-cpu", "emoji-test"])
def test_the_parts_of_a_preset_fit_together(name: str) -> None:
    chosen = preset(name)
    ratio = chosen.autoencoder.spatial_compression_ratio
    assert chosen.side % ratio == 0 and chosen.autoencoder_training.crop % ratio == 0
    # The large edition draws pictures of twice the side from the latents of the small one.
    larger = 2 if name == "emoji-512" else 1
    assert chosen.transformer.sample_size * larger == chosen.side // ratio
    assert chosen.transformer.in_channels == chosen.autoencoder.latent_channels
    with torch.device("meta"):
        transformer, autoencoder = SanaTransformer(chosen.transformer), DCAutoencoder(chosen.autoencoder)
    parameters = sum(p.numel() for model in (transformer, autoencoder) for p in model.parameters())
    assert 2 * parameters < 160e6 if name in ("emoji", "emoji-512") else 2 * parameters < 20e6


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="emoji-cpu"):
        preset("photos")
