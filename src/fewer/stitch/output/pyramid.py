"""Deep Zoom: a map as a pyramid of small JPEG tiles, which OpenSeadragon and its kin show at any size.

Level L of n halves the picture n - L times; the last level is the picture itself. A tile shows 254 pixels and
one more on each inner side (tile 254, overlap 1 of the published format).
"""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from fewer.core.files import write_bytes

TILE, OVERLAP, QUALITY = 254, 1, 90


def write_deep_zoom(image: UInt8[np.ndarray, "height width 3"], folder: Path, name: str) -> Path:
    """Writes `name.dzi` and `name_files/LEVEL/COLUMN_ROW.jpg` into `folder`; returns the first."""
    height, width = image.shape[:2]
    level = (max(height, width) - 1).bit_length()
    smaller = np.asarray(image)
    for number in range(level, -1, -1):
        for (column, row), tile in tiles(smaller):
            path = folder / f"{name}_files" / str(number) / f"{column}_{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
        half = (-(-smaller.shape[1] // 2), -(-smaller.shape[0] // 2))
        smaller = cv2.resize(smaller, half, interpolation=cv2.INTER_AREA)
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" TileSize="{TILE}" Overlap="{OVERLAP}" '
        f'Format="jpg"><Size Width="{width}" Height="{height}"/></Image>\n'
    )
    write_bytes(folder / f"{name}.dzi", text.encode())
    return folder / f"{name}.dzi"


def tiles(
    image: UInt8[np.ndarray, "height width 3"],
) -> list[tuple[tuple[int, int], UInt8[np.ndarray, "rows columns 3"]]]:
    """((column, row), tile) of one level; tiles are views of the picture."""
    found = []
    for row in range(-(-image.shape[0] // TILE)):
        for column in range(-(-image.shape[1] // TILE)):
            top, left = (max(place * TILE - OVERLAP, 0) for place in (row, column))
            bottom, right = (place * TILE + TILE + OVERLAP for place in (row, column))
            found.append(((column, row), image[top:bottom, left:right]))
    return found
