"""Pictures as people keep them: folders of classes, and lists that came out of a spreadsheet.

Both end in rows of (split, file, number of the class or -1) and the names of the classes; `stack_pictures`
reads the files. Nothing is left out in silence: a picture of a format that is not read is named.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from fewer.core.errors import DataError, FileError
from fewer.core.files import inside, read_bytes, read_image
from fewer.learn.label_names import refuse_missing
from fewer.learn.sixteen_bits import SixteenBits

Row = tuple[str, Path, int]
"""Split, file, and number of the class (-1: not known)."""

Fit = Literal["squeeze", "crop", "pad"]
"""How a picture that is not square becomes square: out of shape, its middle, or whole on black."""
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "validation": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")
READ = (".png", ".jpg", ".jpeg", ".webp")
NOT_READ = (".tif", ".tiff", ".bmp", ".gif", ".dcm", ".dicom", ".nii", ".heic", ".avif", ".jp2")
MOST_TABLE_BYTES = 256 * 2**20
SEPARATORS = (",", ";", "\t")


def folder_rows(root: Path) -> tuple[list[Row], tuple[str, ...]]:
    """`split/class/*.png` or `class/*.png`; a class may have further folders in it (of patients, say).

    Raises `DataError` for a picture of a format that is not read.
    """
    by_split = {SPLITS[f.name.lower()]: f for f in folders_in(root) if f.name.lower() in SPLITS}
    by_split = by_split or {"train": root}
    names = sorted({f.name for one in by_split.values() for f in folders_in(one) if not is_unlabelled(f)})
    rows: list[Row] = []
    for split, folder in by_split.items():
        for label, name in enumerate(names):
            rows += [(split, file, label) for file in pictures_in(folder / name, root)]
        for own in filter(is_unlabelled, folders_in(folder)):
            rows += [(split, file, -1) for file in pictures_in(own, root)]
    if by_split.get("train", root) != root:
        for own in filter(is_unlabelled, folders_in(root)):
            rows += [("train", file, -1) for file in pictures_in(own, root)]
    return rows, tuple(names)


def list_rows(path: Path) -> tuple[list[Row], tuple[str, ...]]:
    """A CSV list with the columns `file,label` and perhaps `split`; files are relative to the list's folder.

    Raises `DataError` with the line of the fault: a split that is none, no file, a file listed twice.
    """
    lines = read_table(path, ("file", "label"))
    names = sorted({line["label"] for _, line in lines if line["label"]})
    rows: list[Row] = []
    seen: dict[Path, int] = {}
    for number, line in lines:
        where = f"{path.name} line {number}"
        split = line.get("split") or "train"
        if split.lower() not in SPLITS:
            raise DataError(f"{where}: split {split!r}; allowed: {', '.join(SPLITS)}")
        refuse_missing(line["label"], where, "leave the cell empty")
        if not line["file"]:
            raise DataError(f"{where}: the column `file` is empty")
        file = inside(path.parent, line["file"])
        if not file.exists() and "\\" in line["file"]:  # a list that was written on Windows
            file = inside(path.parent, line["file"].replace("\\", "/"))
        if not file.exists():
            raise FileError(f"{where}: {line['file']!r} is not there", missing=True)
        if file in seen:
            raise DataError(f"{where}: {line['file']!r} is listed already in line {seen[file]}")
        seen[file] = number
        rows.append((SPLITS[split.lower()], file, names.index(line["label"]) if line["label"] else -1))
    return rows, tuple(names)


def read_table(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of a CSV file as spreadsheets write it: with or without a byte order
    mark, separated by comma, semicolon or tab, names of columns in any case. Empty lines are left out.

    Raises `FileError` for what is no UTF-8 text or lacks a column.
    """
    try:
        text = read_bytes(path, MOST_TABLE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path.name}: not a readable CSV file ({error}); save it as UTF-8") from error
    first = text.split("\n", 1)[0]
    separator = max(SEPARATORS, key=first.count)
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=False))
    except csv.Error as error:
        raise FileError(f"{path.name}: not a readable CSV file ({error})") from error
    columns = [cell.strip().lower() for cell in table[0]] if table else []
    missing = [name for name in needed if name not in columns]
    if missing:
        raise FileError(
            f"{path.name}: the first line must name the columns {', '.join(needed)}; missing: "
            f"{', '.join(missing)}; found: {', '.join(columns[:8]) or 'nothing'}"
        )
    return [
        (number, {name: cell.strip() for name, cell in zip(columns, _filled(cells, columns), strict=False)})
        for number, cells in enumerate(table[1:], start=2)
        if any(cell.strip() for cell in cells)
    ]


def fitted(picture: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """The picture in `size` (width, height)."""
    if picture.size == size:
        return picture
    if fit == "squeeze":
        return picture.resize(size)
    return ImageOps.fit(picture, size) if fit == "crop" else ImageOps.pad(picture, size)


def fit_of(facts: Mapping[str, object]) -> Fit:
    """What a training wrote down of it; `squeeze` where it did not."""
    return next((one for one in get_args(Fit) if one == facts.get("fit")), "squeeze")


def stack_pictures(rows: Sequence[Row], size: int | None, source: str, fit: Fit = "squeeze") -> np.ndarray:
    """All pictures as uint8 (n, height, width, 1 or 3): one channel if all are grey.

    Raises `FileError` naming the file that cannot be read, `DataError` for two sizes without `size` and for
    16-bit files that use twelve bits or fewer.
    """
    arrays: list[np.ndarray] = []
    deep = SixteenBits()
    for place, (_, file, _) in enumerate(rows):
        name = f"{file.parent.name}/{file.name}"
        try:
            picture = read_image(file)
        except FileError as error:
            raise FileError(f"{source}, {file.parent.name}: {error}", missing=error.missing) from error
        deep.note(file, name, picture, place)
        if size is not None:
            picture = fitted(picture, (size, size), fit)
        arrays.append(np.asarray(picture, dtype=np.uint8))
        if arrays[-1].shape != arrays[0].shape:
            raise DataError(
                f"{name} is {arrays[-1].shape[1]}x{arrays[-1].shape[0]} pixels but {rows[0][1].name} is "
                f"{arrays[0].shape[1]}x{arrays[0].shape[0]}; give --image-size to resize all of them"
            )
    deep.settle(arrays, source)
    stack = np.stack(arrays)
    if bool((stack[..., 0] == stack[..., 1]).all() and (stack[..., 0] == stack[..., 2]).all()):
        stack = stack[..., :1]
    return stack


def _filled(cells: list[str], columns: list[str]) -> list[str]:
    return cells + [""] * (len(columns) - len(cells))


def folders_in(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def is_unlabelled(folder: Path) -> bool:
    return folder.name.lower() in UNLABELLED_FOLDERS


def pictures_in(folder: Path, root: Path) -> list[Path]:
    """All that are read, sorted; hidden files (as macOS strews them) are none."""
    if not folder.is_dir():
        return []
    files = [file for file in sorted(folder.rglob("*")) if not file.name.startswith(".") and file.is_file()]
    for file in files:
        if file.suffix.lower() in NOT_READ:
            raise DataError(
                f"{file.relative_to(root)}: {file.suffix} pictures are not read; convert them to PNG, JPEG "
                "or WebP, or move them out of the folder"
            )
    return [file for file in files if file.suffix.lower() in READ]
