"""Exact tiling: the same output as the whole picture, for every kind of model, and less memory."""

from dataclasses import replace

import pytest
import torch

from fewer.core.progress import SilentProgress
from fewer.generate.autoencoder import DCAutoencoder, DCAutoencoderConfig, published_config
from fewer.generate.autoencoder.dc_ae import Decoder, Encoder
from fewer.generate.autoencoder.tiling import decode_tiled, decoder_halo, encode_tiled, encoder_halo, windows

from .conftest import perturb
from .live_memory import LiveMemory


def like_published(name: str) -> DCAutoencoderConfig:
    """A published pattern at 1/16 of its widths, with one or two blocks a stage."""
    config = published_config(name)
    widths = tuple(width // 16 for width in config.encoder_block_out_channels)

    def shrink(depths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(min(depth, 2) for depth in depths)

    return replace(
        config,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=shrink(config.encoder_layers_per_block),
        decoder_layers_per_block=shrink(config.decoder_layers_per_block),
        latent_channels=8,
        latent_prefixes=(),
        attention_head_dim=8,
    )


MODELS = {
    "f32-sana": like_published("f32c32-sana"),
    "f32-in": like_published("f32c32-in"),
    "f32-lite": like_published("lite-f32c32"),
    "f64-in": like_published("f64c128-in"),
    "f128-in": like_published("f128c512-in"),
    "f64-1.5": like_published("1.5-f64c128"),
}


def build(config: DCAutoencoderConfig) -> DCAutoencoder:
    model = DCAutoencoder(config).eval()
    perturb(model)
    return model


@pytest.mark.parametrize("name", sorted(MODELS))
def test_tiled_equals_whole(name: str) -> None:
    model = build(MODELS[name])
    ratio = model.config.spatial_compression_ratio
    tall, wide = (3, 5) if ratio == 32 else (3, 2) if ratio == 64 else (1, 2)
    image = torch.rand(1, 3, tall * ratio, wide * ratio, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = model.encode(image, tile=None)
    picture = model.decode(latents, tile=None)
    for tile in (24, 40):
        assert (model.encode(image, tile=tile) - latents).abs().max() <= 1e-5 * max(1, latents.abs().max())
        assert (model.decode(latents, tile=tile) - picture).abs().max() <= 1e-5 * max(1, picture.abs().max())


def test_tiled_in_bfloat16_is_within_two_steps_of_the_range() -> None:
    model = build(MODELS["f32-sana"]).to(torch.bfloat16)
    latents = torch.randn(1, 8, 2, 3, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    whole = model.decode(latents, tile=None).float()
    tiled = model.decode(latents, tile=32).float()
    step = 2.0 ** (whole.abs().max().log2().floor().item() - 7)
    assert (whole - tiled).abs().max() <= 2 * step


@pytest.mark.parametrize("name", sorted(MODELS))
def test_halo_is_enough_and_needed(name: str) -> None:
    """A change outside the halo reaches nothing; one at its edge does (found by gradients)."""
    model = build(MODELS[name]).double()
    decoder, encoder = model.decoder, model.encoder
    first = 3
    halo = decoder_halo(decoder)
    side = 2 * halo + 5
    x = torch.randn(
        1, decoder.up_blocks[2][0].conv.in_channels, 1, side, dtype=torch.float64, requires_grad=True
    )
    part = x
    for index in range(first - 1, -1, -1):
        part = decoder.up_blocks[index](part)
    middle = (side // 2) * 8
    decoder.to_image(part)[..., middle : middle + 8].square().sum().backward()
    seen = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    reach = max(side // 2 - int(seen.min()), int(seen.max()) - side // 2)
    assert halo - 1 <= reach <= halo

    halo = encoder_halo(encoder)
    cells = -(-halo // 8)
    image = torch.randn(1, 3, 8, 8 * (2 * cells + 3), dtype=torch.float64, requires_grad=True)
    part = encoder.conv_in(image)
    for index in range(3):
        part = encoder.down_blocks[index](part)
    part[..., cells + 1].square().sum().backward()
    seen = image.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    start = 8 * (cells + 1)
    assert start - int(seen.min()) <= halo and int(seen.max()) - (start + 7) <= halo
    assert start - int(seen.min()) >= halo - 8


def test_published_halos() -> None:
    with torch.device("meta"):
        assert decoder_halo(Decoder(published_config("f32c32-sana"))) == 7
        assert decoder_halo(Decoder(published_config("f32c32-in"))) == 15


@pytest.mark.parametrize(("side", "halo"), [(1, 0), (2, 3), (5, 1), (100, 2)])
def test_windows_cover_once(side: int, halo: int) -> None:
    seen = torch.zeros(7, 11, dtype=torch.int64)
    numbers = torch.arange(77).reshape(7, 11)
    for window in windows(7, 11, side, halo):
        seen[window.tile] += 1
        assert torch.equal(numbers[window.crop][window.inner], numbers[window.tile])
    assert (seen == 1).all()


def test_peak_memory_at_eight_by_eight_tiles_is_a_quarter() -> None:
    """The sana autoencoder with one block a stage, 1024 px in tiles of 128, counted on the meta device."""
    config = published_config("f32c32-sana")
    config = replace(config, encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6)
    with torch.device("meta"), torch.no_grad():
        model = DCAutoencoder(config).eval()
        latents, image = torch.empty(1, 32, 32, 32), torch.empty(1, 3, 1024, 1024)
        for network, given, tiled in (
            (model.decoder, latents, decode_tiled),
            (model.encoder, image, encode_tiled),
        ):
            with LiveMemory() as whole:
                network(given)
            with LiveMemory() as part:
                tiled(network, given, 128)
            assert part.peak <= whole.peak / 4, (part.peak, whole.peak)


def test_encoder_of_attention_at_full_resolution_is_exact() -> None:
    """Even where the first stage is attentive, streaming keeps the result."""
    from .conftest import tiny_config

    model = build(tiny_config("batch_norm_attention", encoder_block_types="EfficientViTBlock"))
    assert isinstance(model.encoder, Encoder)
    image = torch.rand(2, 1, 20, 12)
    latents = model.encode(image, tile=None)
    assert torch.allclose(model.encode(image, tile=7), latents, atol=1e-5)
    assert torch.allclose(model.decode(latents, tile=7), model.decode(latents, tile=None), atol=1e-5)


class Counted(SilentProgress):
    def __init__(self, at_most: int = 1000) -> None:
        self.counts: dict[str, list[int]] = {}
        self.at_most = at_most

    def start(self, what: str, total: int) -> None:
        self.now = self.counts.setdefault(what, [0, total])

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.now[0] += steps
        if self.now[0] > self.at_most:
            raise KeyboardInterrupt


@pytest.mark.parametrize("tile", [None, 8, 1000])
def test_all_work_is_told_and_may_be_stopped(tile: int | None) -> None:
    from .conftest import tiny_config

    model = build(tiny_config("batch_norm_attention"))
    image, progress = torch.rand(1, 1, 24, 40), Counted()
    latents = model.encode(image, tile=tile, progress=progress)
    model.decode(latents, tile=tile, progress=progress)
    assert set(progress.counts) == {"encode", "decode"}
    assert all(done == total > 1 for done, total in progress.counts.values())
    with pytest.raises(KeyboardInterrupt):
        model.decode(latents, tile=tile, progress=Counted(at_most=0))
    again = Counted()
    model.decode(latents, tile=tile, progress=again)  # nothing is left of the run that was stopped
    assert again.counts["decode"] == progress.counts["decode"]
