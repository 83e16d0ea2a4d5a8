import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from fewer.stitch.output.pyramid import tiles, write_deep_zoom


def picture(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(0, 255, (height, width, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 6)


@pytest.mark.parametrize("size", [(1, 1), (5, 254), (255, 123), (600, 509)])
def test_tiles_cover_a_picture_once_but_for_their_overlap(size: tuple[int, int]) -> None:
    image, seen = picture(*size), np.zeros(size, int)
    for (column, row), tile in tiles(image):
        inner = tile[row > 0 :, column > 0 :][:254, :254]
        part = (slice(254 * row, 254 * row + 254), slice(254 * column, 254 * column + 254))
        assert np.array_equal(inner, image[part])
        assert max(tile.shape[:2]) <= 256
        seen[part] += 1
    assert (seen == 1).all()


def test_every_level_is_there_and_the_last_one_is_the_picture(tmp_path: Path) -> None:
    image = picture(300, 700)
    text = write_deep_zoom(image, tmp_path, "pano_0").read_text()
    assert re.search(r'Width="700" Height="300"', text)
    assert 'TileSize="254" Overlap="1" Format="jpg"' in text
    levels = sorted(int(folder.name) for folder in (tmp_path / "pano_0_files").iterdir())
    assert levels == list(range(11))
    assert cv2.imread(str(tmp_path / "pano_0_files" / "0" / "0_0.jpg")).shape == (1, 1, 3)
    last = cv2.imread(str(tmp_path / "pano_0_files" / "10" / "1_0.jpg"))
    assert last.shape == (255, 256, 3)
    assert np.abs(last.astype(int) - image[:255, 253:509]).mean() < 3
    assert not (tmp_path / "pano_0_files" / "10" / "3_0.jpg").exists()
