"""Pictures of sixteen bits, as scanners write them, in the eight bits that are learnt from.

`core.files.read_image` takes numbers up to 255 as they are and scales larger ones from 65535. What is right
for one picture is wrong for a set: an empty slice of faint noise would come out bright among its neighbours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fewer.core.errors import DataError

TWELVE_BITS = 4095 // 257
"""The largest value in eight bits of a picture that uses twelve of its sixteen bits."""


class SixteenBits:
    """Watches the pictures of a set while they are read: `note` each, `settle` at the end."""

    def __init__(self) -> None:
        self.first = ""
        self.brightest = {True: 0, False: 0}
        """In eight bits, of pictures that were scaled (True) and of those that were taken as they are."""
        self.faint: list[int] = []
        """Places of the latter."""

    def note(self, file: Path, name: str, picture: Image.Image, place: int) -> None:
        """`picture` as it was read from `file`; `place`: where its pixels will be in the set."""
        if not is_deep(file):
            return
        self.first = self.first or name
        scaled = picture.info.get("peak", 256) > 255
        if not scaled:
            self.faint.append(place)
        self.brightest[scaled] = max(self.brightest[scaled], int(np.asarray(picture).max()))

    def settle(self, arrays: list[np.ndarray], source: str) -> None:
        """Brings all pictures of `arrays` to one scale. Raises `DataError` when none is brighter than twelve
        bits can say: in eight bits they would be nearly black."""
        if 0 < self.brightest[True] <= TWELVE_BITS:
            raise DataError(
                f"{source}: the 16-bit pictures (as {self.first}) use 12 bits or fewer, their largest value "
                "is below 4096 of 65535, and would be nearly black; save them with their full range, or in 8 "
                "bits"
            )
        if self.brightest[True]:
            for place in self.faint:  # below 256 of 65535
                arrays[place] = np.zeros_like(arrays[place])


def is_deep(file: Path) -> bool:
    """Whether it is a PNG of sixteen bits: the 25th byte, after signature, length, IHDR, width and height."""
    with file.open("rb") as stream:
        head = stream.read(25)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:] == b"\x10"
