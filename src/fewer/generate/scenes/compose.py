"""Scenes: one to three sprites on a plain background, rendered exactly and many at once.

A `Scene` says everything that its captions may tell, and everything that a judge may check.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from fewer.core.errors import ConfigError
from fewer.generate.scenes.sprites import SpriteSheet
from fewer.generate.scenes.vocabulary import COLOURS

Arrangement = Literal["single", "pair", "stack", "row"]
Place = Literal["center", "left", "right", "top", "bottom"]
Size = Literal["large", "medium", "small"]

SIDE_SHARE: dict[Size, float] = {"large": 0.78, "medium": 0.46, "small": 0.29}
SMALLEST_SHARE = 0.95
"""Sprites are drawn at 95 to 100 % of their size's share."""
MOST_OBJECTS = 3


@dataclass(frozen=True, slots=True)
class Placed:
    """One sprite: its centre as shares of the picture's width and height, its side as one of the shorter."""

    concept: str
    across: float
    down: float
    side: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows. `objects` go from left to right (a stack: downwards); `place` is of a single."""

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


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the sprites of many scenes lie, in whole pixels; a size of 0 means no object."""

    sprite: Int[Tensor, "scenes 3"]
    size: Int[Tensor, "scenes 3"]
    top: Int[Tensor, "scenes 3"]
    left: Int[Tensor, "scenes 3"]
    colour: UInt8[Tensor, "scenes rgb"]

    def __len__(self) -> int:
        return len(self.sprite)

    def rows(self, chosen: Int[Tensor, " chosen"]) -> "Placement":
        """Some of the scenes, on the same device."""
        return Placement(
            *(part[chosen] for part in (self.sprite, self.size, self.top, self.left, self.colour))
        )

    def to(self, device: torch.device) -> "Placement":
        """The same on a device."""
        return Placement(
            *(part.to(device) for part in (self.sprite, self.size, self.top, self.left, self.colour))
        )


class SceneRenderer:
    """Renders scenes from one sprite sheet, on the GPU or a CPU; each sprite is resized once for each size.

    All resized sprites lie in one flat table of pixels, so that a batch of any sizes is one gather.
    """

    def __init__(
        self,
        sheet: SpriteSheet,
        side: int | tuple[int, int],
        device: str | torch.device = "cpu",
        *,
        compiled: bool = False,
    ) -> None:
        """`side` may be (height, width). `compiled` makes one kernel of sixty, for a GPU and few shapes."""
        self.height, self.width = (side, side) if isinstance(side, int) else side
        self.side = side = min(self.height, self.width)
        """Of a square, or the shorter one: what the sprites' sizes are shares of."""
        if side < 16:
            raise ConfigError(f"the side of a scene is {side} pixels; at least 16 are needed")
        self.sheet = sheet
        self.device = torch.device(device)
        self.row_of = {style: row for row, style in enumerate(sheet.styles)}
        self.column_of = {word: column for column, word in enumerate(sheet.words())}
        self._sprites = len(sheet.styles) * len(self.column_of)
        self._starts = torch.full((side + 1,), -1, dtype=torch.long)
        self._starts_there = self._starts.to(self.device)
        self._pixels = torch.zeros(0, 4, dtype=torch.uint8, device=self.device)
        self._paint = torch.compile(_paint, dynamic=False) if compiled else _paint

    def __call__(self, scene: Scene) -> UInt8[np.ndarray, "height width 3"]:
        """The picture of a scene. Raises `ConfigError` for words that the sheet does not hold."""
        return self.pictures([scene])[0]

    def pictures(self, scenes: Sequence[Scene]) -> UInt8[np.ndarray, "scenes height width 3"]:
        """The pictures of some scenes as bytes."""
        return self.render(self.place(scenes)).cpu().numpy()

    def place(self, scenes: Sequence[Scene]) -> Placement:
        """Where everything lies. Raises `ConfigError` for words that the sheet does not hold."""
        sprite = np.zeros((len(scenes), MOST_OBJECTS), dtype=np.int64)
        share = np.zeros((len(scenes), MOST_OBJECTS))
        across, down = np.zeros_like(share), np.zeros_like(share)
        for row, scene in enumerate(scenes):
            for column, thing in enumerate(scene.objects):
                if scene.style not in self.row_of or thing.concept not in self.column_of:
                    raise ConfigError(
                        f"no sprite of a {scene.style} {thing.concept}; look at the sheet's words"
                    )
                sprite[row, column] = self.sprite_of(scene.style, thing.concept)
                across[row, column], down[row, column] = thing.across, thing.down
                share[row, column] = thing.side
        colour = np.array([COLOURS[scene.colour] for scene in scenes], dtype=np.uint8).reshape(-1, 3)
        return self.placement(sprite, share, across, down, colour)

    def sprite_of(self, style: str, word: str) -> int:
        """The number of a sprite in the sheet, row by row."""
        return self.row_of[style] * len(self.column_of) + self.column_of[word]

    def placement(
        self,
        sprite: Int[np.ndarray, "scenes 3"],
        share: Float[np.ndarray, "scenes 3"],
        across: Float[np.ndarray, "scenes 3"],
        down: Float[np.ndarray, "scenes 3"],
        colour: UInt8[np.ndarray, "scenes 3"],
    ) -> Placement:
        """Whole pixels from shares of the side: sizes are even, and at least two where there is an object."""
        size = np.where(share > 0, np.maximum(2, 2 * np.rint(share * self.side / 2)), 0)
        corner = (
            np.rint(middle * length - size / 2)
            for middle, length in ((down, self.height), (across, self.width))
        )
        whole = (torch.from_numpy(part.astype(np.int64)) for part in (sprite, size, *corner))
        return Placement(*whole, torch.from_numpy(colour)).to(self.device)

    def render(
        self,
        placed: Placement,
        top: Int[Tensor, " scenes"] | None = None,
        left: Int[Tensor, " scenes"] | None = None,
        side: int | None = None,
    ) -> UInt8[Tensor, "scenes rows columns 3"]:
        """The scenes, or a window of each: `side` pixels from (`top`, `left`)."""
        self.prepare(placed.size)
        zero = torch.zeros(len(placed), dtype=torch.long, device=self.device)
        rows = torch.arange(side or self.height, device=self.device)
        across = torch.arange(side or self.width, device=self.device)
        ys = (zero if top is None else top)[:, None] + rows
        xs = (zero if left is None else left)[:, None] + across
        columns = (placed.sprite, placed.size, placed.top, placed.left, placed.colour)
        return self._paint(*columns, ys, xs, self._starts_there, self._pixels)

    def prepare(self, sizes: Int[Tensor, "scenes 3"] | None = None) -> "SceneRenderer":
        """Resizes all sprites to these sizes (those of random scenes, by default) if that is still to do."""
        if sizes is None:
            wanted = sorted(set(drawn_sizes(self.side)))
        elif self.device.type == "cuda" and len(self._pixels):
            return self  # looking at the sizes would wait for the GPU; `prepare()` has been called before
        else:
            wanted = [int(size) for size in sizes.unique() if size]
        missing = [size for size in wanted if size >= len(self._starts) or self._starts[size] < 0]
        if missing:
            self._resize(missing)
        return self

    def _resize(self, sizes: list[int]) -> None:
        longest = max(*sizes, len(self._starts) - 1)
        self._starts = functional.pad(self._starts, (0, longest + 1 - len(self._starts)), value=-1)
        straight = torch.from_numpy(self.sheet.pixels).flatten(0, 1).to(self.device)
        found = [self._pixels]
        for size in sizes:
            self._starts[size] = sum(len(part) for part in found)
            parts = (resize_sprites(part, size) for part in straight.split(256))
            found.append(torch.cat([part.reshape(-1, 4) for part in parts]))
        self._pixels = torch.cat(found)
        self._starts_there = self._starts.to(self.device)


def drawn_sizes(side: int) -> list[int]:
    """Every size in pixels that random scenes of this side have."""
    sizes = []
    for share in SIDE_SHARE.values():
        least, most = (max(2, 2 * round(part * share * side / 2)) for part in (SMALLEST_SHARE, 1.0))
        sizes += range(least, most + 1, 2)
    return sizes


def resize_sprites(
    sprites: UInt8[Tensor, "sprites height width 4"], size: int
) -> UInt8[Tensor, "sprites size size 4"]:
    """Resizes with premultiplied colours, so that hidden colours of transparent pixels do not bleed in."""
    if sprites.shape[1:3] == (size, size):
        return sprites
    wide = sprites.permute(0, 3, 1, 2).float()
    alpha = wide[:, 3:] / 255
    mixed = torch.cat([wide[:, :3] * alpha, wide[:, 3:]], dim=1)
    small = functional.interpolate(mixed, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)
    colour = small[:, :3] / (small[:, 3:] / 255).clamp(min=1e-3)
    straight = torch.cat([colour.clamp(max=255), small[:, 3:]], dim=1)
    return straight.round().to(torch.uint8).permute(0, 2, 3, 1)


def _paint(
    sprites: Int[Tensor, "scenes 3"],
    sizes: Int[Tensor, "scenes 3"],
    top: Int[Tensor, "scenes 3"],
    left: Int[Tensor, "scenes 3"],
    colour: UInt8[Tensor, "scenes rgb"],
    ys: Int[Tensor, "scenes rows"],
    xs: Int[Tensor, "scenes columns"],
    starts: Int[Tensor, " known_sizes"],
    pixels: UInt8[Tensor, "all_pixels 4"],
) -> UInt8[Tensor, "scenes rows columns 3"]:
    """Object after object over the background, with integer arithmetic that every device does alike."""
    height, width = ys.shape[1], xs.shape[1]
    picture = colour[:, None, None].to(torch.int32).expand(-1, height, width, -1)
    for slot in range(MOST_OBJECTS):
        size, sprite = sizes[:, slot, None], sprites[:, slot, None]
        down, across = ys - top[:, slot, None], xs - left[:, slot, None]
        inside = _within(down, size)[:, :, None] & _within(across, size)[:, None, :]
        first = starts[size].clamp(min=0) + sprite * size * size
        place = (first + down * size)[:, :, None] + across[:, None, :]
        found = pixels[torch.where(inside, place, 0)].to(torch.int32)
        alpha = found[..., 3:] * inside[..., None]
        picture = (found[..., :3] * alpha + picture * (255 - alpha) + 127) // 255
    return picture.to(torch.uint8)


def _within(
    offset: Int[Tensor, "scenes window"], size: Int[Tensor, "scenes 1"]
) -> Bool[Tensor, "scenes window"]:
    return (offset >= 0) & (offset < size)
