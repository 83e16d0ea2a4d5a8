"""Resolution tables and the way back, against diffusers'."""

import pytest
import torch
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_512_BIN, ASPECT_RATIO_4096_BIN

from fewer.core.errors import ConfigError
from fewer.generate.sampling import bin_table, nearest_bin, resize_to_cover

THEIRS = {
    512: ASPECT_RATIO_512_BIN,
    1024: ASPECT_RATIO_1024_BIN,
    2048: ASPECT_RATIO_2048_BIN,
    4096: ASPECT_RATIO_4096_BIN,
}
SIZES = [(1000, 1500), (1024, 1024), (300, 4000), (4000, 300), (777, 512), (1, 1), (123, 5)]


@pytest.mark.parametrize("base", THEIRS)
def test_tables_and_choices_equal_diffusers(base):
    theirs = {float(ratio): tuple(int(side) for side in size) for ratio, size in THEIRS[base].items()}
    assert bin_table(base) == theirs
    for height, width in SIZES:
        chosen = PixArtImageProcessor.classify_height_width_bin(height, width, ratios=THEIRS[base])
        assert nearest_bin(height, width, base) == tuple(chosen)
    assert all(side % 32 == 0 for size in theirs.values() for side in size)


def test_the_published_example():
    assert nearest_bin(1000, 1500, 1024) == (832, 1216)


@pytest.mark.parametrize("size", [(100, 150), (150, 100), (64, 80), (41, 7), (1, 1)])
def test_resizing_equals_diffusers(size):
    image = torch.rand(1, 3, 64, 80)
    ours = resize_to_cover(image, *size)
    theirs = PixArtImageProcessor.resize_and_crop_tensor(image, size[1], size[0])
    assert ours.shape == (1, 3, *size)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_every_size_is_reached_exactly():
    """Rounding must not lose a row: diffusers' own arithmetic comes out one short for some sizes."""
    for side in range(1, 80):
        assert resize_to_cover(torch.rand(1, 3, 49, 32), side, side).shape == (1, 3, side, side)


def test_an_unknown_base_is_named():
    with pytest.raises(ConfigError, match=r"256.*512, 1024, 2048, 4096"):
        nearest_bin(256, 256, 256)
