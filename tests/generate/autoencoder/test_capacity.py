"""When tiling switches itself on, and how true the memory estimate is."""

import pytest
import torch

from fewer.core.errors import CapacityError, ConfigError
from fewer.generate.autoencoder import DCAutoencoder, capacity, published_config
from fewer.generate.autoencoder.capacity import peak_bytes, pick_tile
from fewer.generate.autoencoder.dc_ae import Decoder
from fewer.generate.autoencoder.tiling import decode_tiled, encode_tiled

from .live_memory import LiveMemory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["f32c32-sana", "f32c32-in", "1.5-f64c128"])
@pytest.mark.parametrize("tile", [None, 256])
def test_estimate_is_near_the_count(name: str, tile: int | None, dtype: torch.dtype) -> None:
    """Real models at 512 px on the meta device: no arithmetic, only sizes."""
    with torch.device("meta"), torch.no_grad():
        model = DCAutoencoder(published_config(name)).to(dtype).eval()
        cells = 512 // model.config.spatial_compression_ratio
        latents = torch.empty(1, model.config.latent_channels, cells, cells, dtype=dtype)
        image = torch.empty(1, 3, 512, 512, dtype=dtype)
        for network, given, tiled in (
            (model.decoder, latents, decode_tiled),
            (model.encoder, image, encode_tiled),
        ):
            with LiveMemory() as live:
                network(given) if tile is None else tiled(network, given, tile)
            ratio = peak_bytes(network, (1, 3, 512, 512), dtype.itemsize, tile) / live.peak
            assert 0.9 <= ratio <= 2.0, (type(network).__name__, ratio)


def test_tiling_switches_itself_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        decoder = Decoder(published_config("f32c32-sana"))
    like = torch.zeros(1, dtype=torch.bfloat16)
    pixels = (1, 3, 4096, 4096)
    picks = []
    for gigabytes in (200, 10, 6):
        monkeypatch.setattr(capacity, "available_memory", lambda _, g=gigabytes: g * 2**30)
        picks.append(pick_tile(decoder, pixels, like, "auto"))
    assert picks[0] is None and picks[1] is not None and picks[2] is not None
    assert picks[1] >= picks[2]
    monkeypatch.setattr(capacity, "available_memory", lambda _: 2**30)
    with pytest.raises(CapacityError, match=r"4096 x 4096.*try"):
        pick_tile(decoder, pixels, like, "auto")


def test_a_wish_is_kept_where_tiles_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "available_memory", lambda _: 200 * 2**30)
    with torch.device("meta"):
        decoder = Decoder(published_config("f32c32-sana"))
    like, pixels = torch.zeros(1), (1, 3, 4096, 4096)
    side = pick_tile(decoder, pixels, like, "auto", 4 * 2**30)
    assert side is not None and peak_bytes(decoder, pixels, 4, side) <= 4 * 2**30
    least = peak_bytes(decoder, pixels, 4, capacity.TILES[-1])
    side = pick_tile(decoder, pixels, like, "auto", 1)  # nothing is so small: about as little as can be
    assert side is not None and peak_bytes(decoder, pixels, 4, side) <= 1.1 * least
    assert pick_tile(decoder, (1, 3, 64, 64), like, "auto", 2**30) is None


@pytest.mark.parametrize("tile", [0, -5, True, 2.5, "large"])
def test_tile_that_is_no_side(tile: object) -> None:
    with torch.device("meta"):
        decoder = Decoder(published_config("f32c32-sana"))
    with pytest.raises((ConfigError, TypeError)):  # the checker of the tests speaks first for other types
        pick_tile(decoder, (1, 3, 64, 64), torch.zeros(1), tile)
