import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from fewer.core.errors import DataError, FileError
from fewer.stitch.frames.source import as_picture, every, natural_key, open_frames


def test_a_folder_is_read_in_natural_order_and_twice(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), np.full((20, 30, 3), number * 10, np.uint8))
    source = open_frames(tmp_path, rate=5.0)
    for _ in range(2):
        frames = list(source)
        assert [int(frame.picture[0, 0, 0]) for frame in frames] == [10, 20, 100]
        assert [frame.seconds for frame in frames] == [0.0, 0.2, 0.4]


def test_a_damaged_picture_is_left_out_with_a_warning(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "Jane Doe's 2.png").write_bytes(b"not a picture")
    (tmp_path / "Jane Doe's 3.png").mkdir()
    (tmp_path / "Jane Doe's 4.png").symlink_to("nowhere")
    source = open_frames(tmp_path)
    assert [frame.index for frame in source] == [0]
    assert [said.split(":")[0] for said in source.warnings] == ["frame 1", "frame 2", "frame 3"]
    assert "Jane" not in " ".join(source.warnings)  # warnings stand in the report


def test_a_list_file_and_a_list_of_paths_agree(tmp_path: Path) -> None:
    for name, value in (("a.png", 7), ("b.png", 9)):
        cv2.imwrite(str(tmp_path / name), np.full((8, 8, 3), value, np.uint8))
    (tmp_path / "list.txt").write_text("b.png\na.png\n")
    by_file = [frame.picture[0, 0, 0] for frame in open_frames(tmp_path / "list.txt")]
    (tmp_path / "list.txt").write_bytes("\ufeffb.png\r\na.png".encode())
    assert [frame.picture[0, 0, 0] for frame in open_frames(tmp_path / "list.txt")] == by_file
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="no list of pictures"):
        open_frames(tmp_path / "list.txt")
    by_list = [frame.picture[0, 0, 0] for frame in open_frames([tmp_path / "b.png", tmp_path / "a.png"])]
    assert by_file == by_list == [9, 7]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.txt", "a.png"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(FileError, match="not a plain file"):
            open_frames(tmp_path / name)


def test_an_iterator_can_still_be_read_twice() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (4, 12, 13, 3), np.uint8)
    source = open_frames(iter(pictures))
    first, second = list(source), list(source)
    assert source.length == 4
    for one, two, true in zip(first, second, pictures, strict=True):
        assert (one.picture == true).all()
        assert (two.picture == true).all()


@pytest.mark.parametrize(
    "array",
    [
        np.full((5, 7), 60000, np.uint16),
        np.full((5, 7, 1), 234, np.uint8),
        np.full((5, 7, 4), 234, np.uint8),
        np.full((5, 7, 3), 234 / 255, np.float32),
    ],
)
def test_grey_alpha_16_bit_and_float_frames_are_accepted(array: np.ndarray) -> None:
    picture = as_picture(array)
    assert picture.shape == (5, 7, 3)
    assert picture.dtype == np.uint8
    assert (np.abs(picture.astype(int) - 234) <= 1).all()


def test_nan_pixels_become_black() -> None:
    assert (as_picture(np.full((4, 4), np.nan, np.float32)) == 0).all()


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4, 5), (5, 5, 2), (1, 9, 3), (0, 0, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="shape"):
        as_picture(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("make", ["missing", "empty"])
def test_missing_and_empty_sources_are_named(tmp_path: Path, make: str) -> None:
    path = tmp_path / make
    if make == "empty":
        path.mkdir()
    with pytest.raises(FileError, match=make) as caught:
        open_frames(path)
    assert caught.value.exit_code == (4 if make == "missing" else 2)


def test_natural_key_sorts_numbers_as_numbers() -> None:
    names = [Path(name) for name in ("f10b", "f2", "f10a", "F1")]
    assert [path.name for path in sorted(names, key=natural_key)] == ["F1", "f2", "f10a", "f10b"]


def test_a_stride_opens_only_the_pictures_it_picks(tmp_path: Path) -> None:
    paths = []
    for number in range(7):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), np.full((8, 9, 3), 30 * number, np.uint8))
    paths[1].write_bytes(b"never opened")
    source = open_frames(tmp_path)
    assert [frame.index for frame in every(source, 3)] == [0, 3, 6]
    assert source.warnings == []
    assert [frame.index for frame in every(source, 1)] == [0, 2, 3, 4, 5, 6]
    assert len(source.warnings) == 1
    spooled = open_frames(iter([np.full((8, 9, 3), number, np.uint8) for number in range(7)]))
    for _ in range(2):  # while it is spooled, and from the spool
        assert [int(frame.picture[0, 0, 0]) for frame in every(spooled, 2)] == [0, 2, 4, 6]
    assert [frame.index for frame in every(open_frames([np.zeros((8, 9, 3), np.uint8)] * 5), 4)] == [0, 4]
