"""Presets are what their names say and small enough to train on a laptop."""

import pytest
import torch

from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.autoencoder.presets import preset_config


@pytest.mark.parametrize(("name", "ratio"), [("f16", 16), ("f32", 32), ("f64", 64), ("f128", 128)])
@pytest.mark.parametrize("structured", [False, True])
def test_ratio_and_size(name: str, ratio: int, structured: bool) -> None:
    config = preset_config(name, structured=structured)
    assert config.spatial_compression_ratio == ratio
    assert bool(config.latent_prefixes) == structured == (not config.encoder_out_shortcut)
    with torch.device("meta"):
        model = DCAutoencoder(config)
        assert model.encoder(torch.empty(1, 3, ratio, 2 * ratio)).shape == (1, config.latent_channels, 1, 2)
    assert sum(p.numel() for p in model.parameters()) < 60e6


def test_grey() -> None:
    assert preset_config("f16", in_channels=1).in_channels == 1
