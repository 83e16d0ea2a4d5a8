"""Published models: exactly the published tensors, totals and names."""

import json
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.autoencoder import DCAutoencoder, published_config, published_names
from fewer.generate.autoencoder.formats import state_shapes

SHAPES = json.loads((Path(__file__).parents[2] / "data/dc_ae_shapes.json").read_text())


@pytest.mark.parametrize("name", published_names())
def test_published_models_have_exactly_the_published_tensors(name: str) -> None:
    key = name.removesuffix("-in").removesuffix("-mix")
    with torch.device("meta"):
        model = DCAutoencoder(published_config(name))
    assert state_shapes(model) == {tensor: tuple(shape) for tensor, shape in SHAPES[key].items()}


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("f32c32-sana", 153_027_104, 159_223_171),
        ("f32c32-in", 123_172_384, 200_184_076),
        ("f64c128-mix", 264_550_528, 412_345_612),
        ("f128c512-in", 415_661_056, 705_021_196),
        ("lite-f32c32", 153_027_104, 268_154_124),
        ("1.5-f32c128", 228_609_408, 295_000_332),
        ("1.5-f64c128", 306_478_720, 408_262_924),
    ],
)
def test_parameter_totals(name: str, encoder: int, decoder: int) -> None:
    with torch.device("meta"):
        model = DCAutoencoder(published_config(name))
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder


def test_hub_names_are_understood() -> None:
    assert published_config("mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers") == published_config("f32c32-sana")
    assert published_config("mit-han-lab/dc-ae-f64c128-mix-1.0").scaling_factor == 0.4538
    assert published_config("dc-ai/dc-ae-lite-f32c32-diffusers") == published_config("lite-f32c32")
    for name in (
        "1.5-f32c128",
        "dc-ae-1.5-f32c128-1.0",
        "dc-ai/dc-ae-1.5-f32c128-in-1.0-diffusers/",
        "dc-ai/dc-ae-f32c128-1.5",
    ):
        assert published_config(name) == published_config("1.5-f32c128")
    assert published_config("dc-ai/dc-ae-f64c128-1.5").scaling_factor == 0.5935
    assert published_config("dc-ai/dc-ae-lite-f32c32-sana-1.1-diffusers").decoder_block_types == "ResBlock"
    for unknown in ("f16c8", "dc-ae-f32c32-1.0", "dc-ae-f64c128-sana-1.0", "f32c32-in-extra", ""):
        with pytest.raises(ConfigError, match="known: f32c32-in"):
            published_config(unknown)
