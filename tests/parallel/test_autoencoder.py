"""Acceptance A5: decoding and encoding in bands is exact, the quadratic-branch trap included."""

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.autoencoder.config import DCAutoencoderConfig
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.parallel.attach import parallelize
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from tests.parallel.conftest import randomise


def tiny(down: str, up: str, scales: tuple) -> DCAutoencoder:
    config = DCAutoencoderConfig(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(8, 16, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), scales),
        decoder_qkv_multiscales=((), (), scales),
        downsample_block_type=down,
        upsample_block_type=up,
    )
    model = DCAutoencoder(config).eval()
    randomise(model, size=0.2)
    return model


@pytest.mark.parametrize(
    ("down", "up", "scales"), [("conv", "interpolate", (5,)), ("pixel_unshuffle", "pixel_shuffle", ())]
)
@pytest.mark.parametrize(("devices", "rows"), [(2, 4), (3, 7), (4, 9)])
@torch.no_grad()
def test_decode_and_encode_equal_one_device(
    down: str, up: str, scales: tuple, devices: int, rows: int
) -> None:
    model = tiny(down, up, scales)
    latents = torch.randn(1, 4, rows, 3, generator=torch.Generator().manual_seed(0))
    if scales and rows // devices < 2:
        rows = 2 * devices
        latents = torch.randn(1, 4, rows, 3)
    image = model.decode(latents, tile=None)
    again = model.encode(image, tile=None)

    def rank_main(group: object) -> tuple:
        parallel = parallelize(model, ParallelPlan(devices=devices), group)
        return parallel.decode(latents), parallel.encode(image)

    for decoded, encoded in run_simulated(devices, rank_main):
        assert (decoded - image).abs().max() <= 1e-5 * image.abs().max()
        assert (encoded - again).abs().max() <= 2e-5 * again.abs().max()
    assert set(model.state_dict()) == set(run_simulated(
        devices, lambda group: list(parallelize(model, ParallelPlan(devices=devices), group).state_dict())
    )[0])  # fmt: skip


def test_bands_too_thin_for_the_widest_convolution_are_refused() -> None:
    model = tiny("conv", "interpolate", (5,))
    with pytest.raises(ConfigError, match="bands of at least 2"):
        run_simulated(
            3,
            lambda group: parallelize(model, ParallelPlan(devices=3), group).decode(torch.zeros(1, 4, 5, 4)),
        )
