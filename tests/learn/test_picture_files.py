"""Folders and lists as a hospital's data manager hands them over."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewer.core.errors import DataError, FileError
from fewer.learn.data import load_images
from fewer.learn.picture_files import folder_rows, list_rows, read_table, stack_pictures


def draw(path: Path, shade: int = 90, side: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), shade).save(path)
    return path


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "TEST"), ("training", "testing")])
def test_splits_go_by_their_name_in_any_case(tmp_path: Path, names: tuple[str, str]) -> None:
    for split in names:
        for label in ("ill", "well"):
            draw(tmp_path / split / label / "1.png")
    rows, classes = folder_rows(tmp_path)
    assert classes == ("ill", "well")
    assert sorted(split for split, _, _ in rows) == ["test", "test", "train", "train"]


def test_patients_folders_hidden_files_and_unlabelled_ones(tmp_path: Path) -> None:
    for name in ("ill/patient 1/a.png", "ill/patient 2/a.PNG", "well/b.jpg", "Unlabelled/c.png"):
        draw(tmp_path / name)
    (tmp_path / "ill" / "._a.png").write_bytes(b"macOS")
    (tmp_path / "ill" / "Thumbs.db").write_bytes(b"Windows")
    rows, classes = folder_rows(tmp_path)
    assert classes == ("ill", "well")
    assert [(file.name, label) for _, file, label in rows] == [
        ("a.png", 0),
        ("a.PNG", 0),
        ("b.jpg", 1),
        ("c.png", -1),
    ]


@pytest.mark.parametrize("suffix", [".tif", ".DCM", ".bmp"])
def test_a_picture_that_is_not_read_is_named(tmp_path: Path, suffix: str) -> None:
    draw(tmp_path / "ill" / "a.png")
    (tmp_path / "ill" / f"scan{suffix}").write_bytes(b"x")
    with pytest.raises(DataError, match=f"ill.scan{suffix}: .* convert them"):
        folder_rows(tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_as_spreadsheets_write_them(tmp_path: Path, separator: str, encoding: str) -> None:
    draw(tmp_path / "a" / "1.png")
    draw(tmp_path / "2.png")
    lines = ["File,Label,split", "a\\1.png,kränk,Train", "2.png,,test", ",,"]
    text = "\r\n".join(line.replace(",", separator) for line in lines)
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    rows, classes = list_rows(tmp_path / "list.csv")
    assert classes == ("kränk",)
    assert [(split, file.name, label) for split, file, label in rows] == [
        ("train", "1.png", 0),
        ("test", "2.png", -1),
    ]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (b"path,diagnosis\na.png,x\n", FileError, "missing: file, label; found: path, diagnosis"),
        (b"", FileError, "found: nothing"),
        (b"file,label,split\na.png,x,somewhere\n", DataError, "line 2: split 'somewhere'"),
        (b"file,label\na.png,x\na.png,y\n", DataError, "line 3: 'a.png' is listed already in line 2"),
        (b"file,label\na.png,x\nnone.png,y\n", FileError, "line 3: 'none.png' is not there"),
        (b"file,label\na.png,NaN\n", DataError, "line 2: the label 'NaN' is what programs write"),
        (b"file,label\n,x\n", DataError, "line 2: the column `file` is empty"),
        (b"file,label\n../../etc/passwd,a\n", FileError, "leads out"),
        ("file,label\na.png,kränk\n".encode("latin-1"), FileError, "save it as UTF-8"),
        (b'file,label\n"' + b"a" * 200_000, FileError, "not a readable CSV"),
    ],
)
def test_faults_of_a_list_have_their_line(tmp_path: Path, text: bytes, kind: type, message: str) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "list.csv").write_bytes(text)
    with pytest.raises(kind, match=message):
        list_rows(tmp_path / "list.csv")


def test_short_and_empty_lines_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("row,label\n3\n\n4,b\n")
    assert read_table(tmp_path / "t.csv", ("row",)) == [
        (2, {"row": "3", "label": ""}),
        (4, {"row": "4", "label": "b"}),
    ]


@pytest.mark.parametrize(("level", "dark"), [(4095, True), (65535, False), (0, False)])
def test_sixteen_bits_are_scaled_and_twelve_are_named(tmp_path: Path, level: int, dark: bool) -> None:
    Image.fromarray(np.full((4, 4), level, np.uint16)).save(tmp_path / "a.png")
    rows = [("train", tmp_path / "a.png", 0)]
    if dark:
        with pytest.raises(DataError, match="use 12 bits or fewer"):
            stack_pictures(rows, None, "set")
    else:
        assert (stack_pictures(rows, None, "set") == level // 257).all()


def test_modes_are_mixed_and_a_broken_file_is_named_with_its_folder(tmp_path: Path) -> None:
    grey = draw(tmp_path / "ill" / "grey.png", 100)
    for mode in ("RGB", "RGBA", "LA", "P"):
        Image.open(grey).convert(mode).save(tmp_path / "ill" / f"{mode}.png")
    rows, _ = folder_rows(tmp_path)
    assert (stack_pictures(rows, None, "set") == np.full((5, 4, 4, 1), 100)).all()
    (tmp_path / "ill" / "z.png").write_bytes(b"no picture")
    with pytest.raises(FileError, match=r"set, ill: 'z\.png'"):
        stack_pictures(folder_rows(tmp_path)[0], None, "set")


def test_what_is_not_square_is_squeezed_cropped_or_padded_in_files_as_in_arrays(tmp_path: Path) -> None:
    wide = np.full((8, 24), 200, np.uint8)
    wide[:, :8] = 40  # cropping takes the middle third alone
    for label in ("ill", "well"):
        (tmp_path / "set" / "train" / label).mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / "set" / "train" / label / "1.png")
    np.savez(tmp_path / "set.npz", train_images=np.stack([wide, wide]), train_labels=[0, 1])
    for source in (tmp_path / "set", tmp_path / "set.npz"):
        for fit, dark, black in (("squeeze", 1 / 3, 0.0), ("crop", 0.0, 0.0), ("pad", 1 / 9, 2 / 3)):
            found = load_images(source, size=24, fit=fit).train.images[0, :, :, 0].float()  # pyright: ignore
            near = (found - 40).abs() < 12
            assert float(near.float().mean()) == pytest.approx(dark, abs=0.05), (source, fit)
            assert float((found < 12).float().mean()) == pytest.approx(black, abs=0.05), (source, fit)
