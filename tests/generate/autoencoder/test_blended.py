"""Blended tiling: right sizes at every ratio, exact where a tile is everything, seams elsewhere."""

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.core.progress import SilentProgress
from fewer.generate.autoencoder.blended import decode_blended, encode_blended
from tests.generate.autoencoder.test_tiling import MODELS, build


@pytest.mark.parametrize("name", ["f32-sana", "f64-1.5", "f128-in"])
def test_sizes_are_right_where_512_and_448_do_not_divide(name: str) -> None:
    model = build(MODELS[name])
    ratio = model.config.spatial_compression_ratio
    latents = torch.randn(1, 8, 1, 4 + (ratio == 128))
    width = latents.shape[3] * ratio
    picture = decode_blended(model, latents, tile=2 * ratio, stride=int(1.75 * ratio))
    assert picture.shape == (1, 3, ratio, width) and torch.isfinite(picture).all()
    again = encode_blended(model, torch.rand(1, 3, ratio, width), tile=2 * ratio, stride=int(1.75 * ratio))
    assert again.shape == latents.shape and torch.isfinite(again).all()


def test_one_tile_is_the_whole_picture_and_two_are_not() -> None:
    model = build(MODELS["f32-sana"])
    latents = torch.randn(1, 8, 2, 3)
    whole = model.decode(latents, tile=None)
    assert torch.allclose(decode_blended(model, latents), whole, atol=1e-6)
    assert (decode_blended(model, latents, tile=64, stride=32) - whole).abs().max() > 1e-3


def test_a_constant_stays_constant_across_seams() -> None:
    """The weights of overlapping tiles add up to one."""
    from fewer.generate.autoencoder.blended import _add, _starts

    total, weights = torch.zeros(1, 1, 10, 13), torch.zeros(10, 13)
    for row in _starts(10, 4, 3):
        for column in _starts(13, 4, 3):
            part = torch.full((1, 1, min(4, 10 - row), min(4, 13 - column)), 5.0)
            _add(total, weights, part, (row, column), (10, 13), 1)
    assert torch.allclose(total / weights, torch.full_like(total, 5.0))


def test_every_tile_is_told() -> None:
    model = build(MODELS["f32-sana"])
    progress = Noted()
    decode_blended(model, torch.randn(1, 8, 2, 3), tile=64, stride=32, progress=progress)
    encode_blended(model, torch.rand(1, 3, 32, 96), tile=64, stride=32, progress=progress)
    assert progress.told == [("decode", 2, 2), ("encode", 2, 2)]


class Noted(SilentProgress):
    """What was begun, of how many steps, and how many were done."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def start(self, what: str, total: int) -> None:
        self.told.append((what, total, 0))

    def advance(self, steps: int = 1, **figures: float) -> None:
        what, total, done = self.told[-1]
        self.told[-1] = (what, total, done + steps)


@pytest.mark.parametrize(("tile", "stride"), [(512, 0), (512, 513), (16, 8)])
def test_bad_tiles(tile: int, stride: int) -> None:
    with pytest.raises(ConfigError, match="stride"):
        decode_blended(build(MODELS["f32-sana"]), torch.randn(1, 8, 1, 1), tile, stride)
