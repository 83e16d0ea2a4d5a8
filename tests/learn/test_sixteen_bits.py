from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewer.core.errors import DataError
from fewer.learn.picture_files import stack_pictures
from fewer.learn.sixteen_bits import is_deep


def scans(folder: Path, *peaks: int) -> list:
    rows = []
    for number, peak in enumerate(peaks):
        file = folder / f"{number}.png"
        Image.fromarray(np.full((4, 4), peak, np.uint16)).save(file)
        assert is_deep(file)
        rows.append(("train", file, 0))
    return rows


def test_a_faint_picture_stays_faint_among_brighter_ones(tmp_path: Path) -> None:
    stack = stack_pictures(scans(tmp_path, 200, 65535, 257, 0), None, "set")
    assert stack[:, 0, 0, 0].tolist() == [0, 255, 1, 0]
    Image.new("L", (4, 4), 77).save(tmp_path / "0.png")  # of eight bits
    assert stack_pictures([("train", tmp_path / f"{k}.png", 0) for k in (0, 1)], 2, "set")[0, 0, 0, 0] == 77


def test_numbers_of_eight_bits_are_taken_as_they_are(tmp_path: Path) -> None:
    assert stack_pictures(scans(tmp_path, 200, 255, 0), None, "set")[:, 0, 0, 0].tolist() == [200, 255, 0]


def test_twelve_bits_are_named_whatever_faint_picture_is_among_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set: the 16-bit pictures \(as .*0\.png\) use 12 bits or fewer"):
        stack_pictures(scans(tmp_path, 200, 4095, 3000), None, "set")
