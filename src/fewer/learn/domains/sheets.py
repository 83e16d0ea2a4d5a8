"""A set of sheets: one picture file per domain, cut into square tiles, with a `labels.csv` beside them
(columns index, group, subgroup, name, object_split), as in data/emoji-styles."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.files import read_image
from fewer.learn.data import LabelledImages, make_labelled_images
from fewer.learn.domains.images import Domains

TASKS = ("group8", "subgroup", "identity")
TILES_A_ROW = 40
SMALLEST_CLASS = 8  # objects; the group "flags" has as many and is left out of group8 by name
_SHEETS = (".webp", ".png")


def load_sheets(folder: Path, *, task: str = "group8", size: int | None = None) -> Domains:
    """Every sheet is a domain; every tile an object that appears in all of them.

    Raises `FileError` for a missing or damaged list or sheet, `DataError` for one that does not fit.
    """
    folder = Path(folder)
    if task not in TASKS:
        raise ConfigError(f"task {task!r} is not known; allowed: {', '.join(TASKS)}")
    rows = _read_rows(folder / "labels.csv")
    labels, class_names = _labels(rows, task)
    used = [k for k, label in enumerate(labels) if label is not None]
    places = [int(rows[k]["index"]) for k in used]
    if not places:
        raise DataError(
            f"{folder.name}: no class of task {task!r} is left; one needs at least "
            f"{SMALLEST_CLASS + (task == 'group8')} objects (identity: one)"
        )
    numbers = [label for label in labels if label is not None]
    sheets = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SHEETS)
    if len(sheets) < 2:
        raise DataError(f"{folder.name}: {len(sheets)} sheet found beside labels.csv; at least 2 are needed")
    images: list[LabelledImages] = []
    for sheet in sheets:
        tiles = _tiles(sheet, places, size)
        images.append(make_labelled_images(tiles, numbers, class_names, sheet.stem))
    unseen = torch.tensor([rows[k]["object_split"] == "test" for k in used])
    count = len(sheets)
    return Domains(
        tuple(sheet.stem for sheet in sheets),
        tuple(images),
        objects=(torch.tensor(places),) * count,
        unseen=(unseen,) * count,
        name=f"{folder.name}-{task}",
    )


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise FileError(f"{path.name}: not a readable CSV file ({error})") from error
    wanted = {"index", "group", "subgroup", "name", "object_split"}
    if not rows or not wanted <= set(rows[0]):
        raise DataError(f"{path.name}: the columns {', '.join(sorted(wanted))} are needed")
    for number, row in enumerate(rows, start=2):
        index = row["index"] or ""
        numbered = index.isascii() and index.isdecimal() and len(index) < 9
        if not numbered or row["object_split"] not in ("train", "test"):
            raise DataError(f"{path.name} line {number}: index must be a number, object_split train or test")
    return rows


def _labels(rows: list[dict[str, str]], task: str) -> tuple[list[int | None], tuple[str, ...]]:
    """A class number for each row, None for rows that the task leaves out, and the class names."""
    if task == "identity":
        names = [f"{row['index']} {row['name']}" if row["group"] != "flags" else None for row in rows]
    else:
        column = "group" if task == "group8" else "subgroup"
        counts = Counter(row[column] for row in rows)
        smallest = SMALLEST_CLASS + 1 if task == "group8" else SMALLEST_CLASS
        names = [row[column] if counts[row[column]] >= smallest else None for row in rows]
    classes = sorted({name for name in names if name is not None})
    places = {name: number for number, name in enumerate(classes)}
    return [None if name is None else places[name] for name in names], tuple(classes)


def _tiles(sheet: Path, places: list[int], size: int | None) -> np.ndarray:
    """(n, side, side, 3) uint8: the tiles at these places, row-major, 40 a row."""
    picture = read_image(sheet)
    side = picture.size[0] // TILES_A_ROW
    rows = picture.size[1] // max(1, side)
    if side < 4 or side * TILES_A_ROW != picture.size[0] or max(places) >= rows * TILES_A_ROW:
        raise DataError(
            f"{sheet.name} is {picture.size[0]}x{picture.size[1]} pixels: no sheet of {TILES_A_ROW} tiles "
            f"a row that holds tile {max(places)}"
        )
    pixels = np.asarray(picture, dtype=np.uint8)[: rows * side]
    grid = pixels.reshape(rows, side, TILES_A_ROW, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    chosen = grid[places]
    if size is None or size == side:
        return chosen
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(tile).resize((size, size))) for tile in chosen])
