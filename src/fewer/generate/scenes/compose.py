"""Scenes: one to three sprites on a plain background, drawn at random and rendered exactly.

A `Scene` says everything that its captions may tell, and everything that a judge may check.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fewer.core.errors import ConfigError
from fewer.generate.scenes.sprites import SpriteSheet, resize_rgba
from fewer.generate.scenes.vocabulary import COLOURS

Arrangement = Literal["single", "pair", "row"]
Place = Literal["center", "left", "right"]
Size = Literal["large", "medium", "small"]

SIDE_SHARE: dict[Size, float] = {"large": 0.78, "medium": 0.46, "small": 0.29}
_ACROSS: dict[Place, float] = {"center": 0.5, "left": 0.25, "right": 0.75}
_JITTER = 0.01


@dataclass(frozen=True, slots=True)
class Placed:
    """One sprite: its centre and side as shares of the picture's side."""

    concept: str
    across: float
    down: float
    side: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows. `objects` go from left to right; `place` is of the single object."""

    style: str
    colour: str
    arrangement: Arrangement
    place: Place
    size: Size
    objects: tuple[Placed, ...]

    @property
    def concepts(self) -> tuple[str, ...]:
        """The words of its objects, left to right."""
        return tuple(thing.concept for thing in self.objects)


def draw_scene(words: tuple[str, ...], styles: tuple[str, ...], random: np.random.Generator) -> Scene:
    """A random scene: 55 % one object, 25 % two different ones side by side, 20 % two or three alike."""
    style = styles[random.integers(len(styles))]
    colour = tuple(COLOURS)[random.integers(len(COLOURS))]
    first, second = (words[index] for index in random.choice(len(words), 2, replace=len(words) < 2))
    kind = random.random()
    if kind < 0.55:
        place: Place = ("center", "center", "left", "right")[random.integers(4)]
        size: Size = ("large", "small")[int(random.random() < 0.3)] if place == "center" else "medium"
        return _scene(style, colour, "single", place, size, (first,), (_ACROSS[place],), random)
    if kind < 0.8 and first != second:
        both = (_ACROSS["left"], _ACROSS["right"])
        return _scene(style, colour, "pair", "center", "medium", (first, second), both, random)
    if random.random() < 0.5:
        both = (_ACROSS["left"], _ACROSS["right"])
        return _scene(style, colour, "row", "center", "medium", (first,) * 2, both, random)
    return _scene(style, colour, "row", "center", "small", (first,) * 3, (0.17, 0.5, 0.83), random)


def _scene(
    style: str,
    colour: str,
    arrangement: Arrangement,
    place: Place,
    size: Size,
    concepts: tuple[str, ...],
    across: tuple[float, ...],
    random: np.random.Generator,
) -> Scene:
    scale = SIDE_SHARE[size] * random.uniform(0.95, 1.0)
    shift = random.uniform(-_JITTER, _JITTER, (len(concepts), 2)).tolist()
    # Pictures in a row share their height, or three alike would look like a dance.
    down = 0.5 + shift[0][1]
    things = tuple(
        Placed(concept, centre + dx, down, scale)
        for concept, centre, (dx, _) in zip(concepts, across, shift, strict=True)
    )
    return Scene(style, colour, arrangement, place, size, things)


class SceneRenderer:
    """Renders scenes from one sprite sheet; resized sprites are kept, there are only a few sizes."""

    def __init__(self, sheet: SpriteSheet, side: int) -> None:
        if side < 16:
            raise ConfigError(f"the side of a scene is {side} pixels; at least 16 are needed")
        self.sheet = sheet
        self.side = side
        self.row_of = {style: row for row, style in enumerate(sheet.styles)}
        self.column_of = {word: column for column, word in enumerate(sheet.words())}
        self._resized: dict[tuple[int, int, int], np.ndarray] = {}

    def __call__(self, scene: Scene) -> UInt8[np.ndarray, "side side 3"]:
        """The picture of a scene. Raises `ConfigError` for words that the sheet does not hold."""
        picture = np.empty((self.side, self.side, 3), dtype=np.uint8)
        picture[:] = COLOURS[scene.colour]
        for thing in scene.objects:
            if scene.style not in self.row_of or thing.concept not in self.column_of:
                raise ConfigError(f"no sprite of a {scene.style} {thing.concept}; look at the sheet's words")
            sprite = self._sprite(self.row_of[scene.style], self.column_of[thing.concept], thing.side)
            self._paste(picture, sprite, thing)
        return picture

    def _sprite(self, row: int, column: int, share: float) -> UInt8[np.ndarray, "size size 4"]:
        size = max(2, 2 * round(share * self.side / 2))
        key = (row, column, size)
        if key not in self._resized:
            whole = Image.fromarray(self.sheet.pixels[row, column])
            self._resized[key] = np.asarray(resize_rgba(whole, size, size))
        return self._resized[key]

    def _paste(
        self,
        picture: UInt8[np.ndarray, "side side 3"],
        sprite: UInt8[np.ndarray, "size size 4"],
        thing: Placed,
    ) -> None:
        size = sprite.shape[0]
        top = round(thing.down * self.side - size / 2)
        left = round(thing.across * self.side - size / 2)
        first_row, first_column = max(0, -top), max(0, -left)
        last_row, last_column = min(size, self.side - top), min(size, self.side - left)
        part = sprite[first_row:last_row, first_column:last_column].astype(np.int32)
        target = picture[top + first_row : top + last_row, left + first_column : left + last_column]
        alpha = part[..., 3:]
        target[:] = (part[..., :3] * alpha + target.astype(np.int32) * (255 - alpha) + 127) // 255
