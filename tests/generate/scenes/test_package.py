"""A written model opens again as about what it was, in a fraction of the bytes."""

import torch

from fewer.core.files import read_json
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.model_folder import ModelSettings, read_settings
from fewer.generate.scenes.package import write_model
from fewer.generate.transformer.sana import SanaTransformer


def test_a_model_survives_its_folder(tiny, small_autoencoder, tmp_path) -> None:
    settings = ModelSettings(
        text_layers=3, text_length=40, chi=False, default_size=(16, 16), shift=1.5, guidance=2.0
    )
    sizes = write_model(tmp_path, tiny(), small_autoencoder, settings)
    assert read_settings(tmp_path) == settings
    assert read_json(tmp_path / "model_index.json")["text_encoder"] == ["fewer", "smollm2-135m"]
    transformer = SanaTransformer.load(tmp_path)
    for name, value in tiny().state_dict().items():
        near = transformer.state_dict()[name].float()
        assert torch.allclose(near, value, atol=float(value.abs().max()) / 120)
    autoencoder = DCAutoencoder.load(tmp_path / "vae")
    assert autoencoder.config == small_autoencoder.config
    parameters = sum(parameter.numel() for parameter in tiny().parameters())
    assert parameters < sizes["transformer"] < 2 * parameters + 30_000
    assert {parameter.dtype for parameter in tiny().parameters()} == {torch.float32}
