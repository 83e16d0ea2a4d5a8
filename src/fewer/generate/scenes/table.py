"""Random scenes by the hundred thousand: drawn as columns of numbers, turned into `Scene`s where needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from fewer.core.errors import ConfigError
from fewer.generate.scenes.compose import (
    MOST_OBJECTS,
    SIDE_SHARE,
    SMALLEST_SHARE,
    Arrangement,
    Place,
    Placed,
    Placement,
    Scene,
    SceneRenderer,
    Size,
)
from fewer.generate.scenes.split import Split, held_out_colour, held_out_pair, held_out_style, kept_aside
from fewer.generate.scenes.vocabulary import COLOURS, Vocabulary

_ARRANGEMENTS: tuple[Arrangement, ...] = ("single", "pair", "stack", "row")
_PLACES: tuple[Place, ...] = ("center", "left", "right", "top", "bottom")
_SIZES: tuple[Size, ...] = ("large", "medium", "small")
_NEAR, _FAR = 0.25, 0.75
_JITTER = 0.01
_MOST_BLOCKS = 400


@dataclass(frozen=True, slots=True)
class SceneTable:
    """Scenes as columns, one row each; words are places in the vocabulary."""

    vocabulary: Vocabulary
    style: Int[np.ndarray, " scenes"]
    colour: Int[np.ndarray, " scenes"]
    arrangement: Int[np.ndarray, " scenes"]
    place: Int[np.ndarray, " scenes"]
    size: Int[np.ndarray, " scenes"]
    concepts: Int[np.ndarray, "scenes 3"]
    """-1 where there is no object."""
    across: Float[np.ndarray, "scenes 3"]
    down: Float[np.ndarray, "scenes 3"]
    side: Float[np.ndarray, " scenes"]

    def __len__(self) -> int:
        return len(self.style)

    def rows(self, chosen: Sequence[int] | np.ndarray | slice) -> "SceneTable":
        """Some of the scenes."""
        return SceneTable(self.vocabulary, *(part[chosen] for part in self._columns()))

    def scene(self, row: int) -> Scene:
        """One scene in words."""
        words, side = self.vocabulary.words, float(self.side[row])
        things = tuple(
            Placed(words[concept], float(x), float(y), side)
            for concept, x, y in zip(
                self.concepts[row].tolist(), self.across[row], self.down[row], strict=True
            )
            if concept >= 0
        )
        return Scene(
            self.vocabulary.styles[self.style[row]],
            tuple(COLOURS)[self.colour[row]],
            _ARRANGEMENTS[self.arrangement[row]],
            _PLACES[self.place[row]],
            _SIZES[self.size[row]],
            things,
        )

    def scenes(self) -> list[Scene]:
        """All scenes in words."""
        return [self.scene(row) for row in range(len(self))]

    def placed(self, renderer: SceneRenderer) -> Placement:
        """What the renderer needs of every scene, on its device."""
        words, styles = self.vocabulary.words, self.vocabulary.styles
        table = np.array([[renderer.sprite_of(style, word) for word in words] for style in styles])
        present = self.concepts >= 0
        sprite = np.where(present, table[self.style[:, None], self.concepts.clip(min=0)], 0)
        colours = np.array(list(COLOURS.values()), dtype=np.uint8)[self.colour]
        return renderer.placement(sprite, self.side[:, None] * present, self.across, self.down, colours)

    def _columns(self) -> tuple[np.ndarray, ...]:
        return (
            self.style, self.colour, self.arrangement, self.place, self.size,
            self.concepts, self.across, self.down, self.side,
        )  # fmt: skip


def draw_table(vocabulary: Vocabulary, count: int, split: Split, seed: int) -> SceneTable:
    """Random scenes of one split. Raises `ConfigError` when the vocabulary has next to none of it."""
    random = np.random.default_rng([seed, ("train", "validation", "held-out").index(split)])
    parts: list[SceneTable] = []
    found = 0
    for _ in range(_MOST_BLOCKS):
        block = draw_any(vocabulary, max(64, 2 * count), random)
        parts.append(block.rows(np.flatnonzero(splits_of(block) == split)))
        found += len(parts[-1])
        if found >= count:
            break
    else:
        raise ConfigError(
            f"{len(vocabulary.words)} concepts have hardly any {split} scenes; use more concepts"
        )
    columns = zip(*(part._columns() for part in parts), strict=True)
    return SceneTable(vocabulary, *(np.concatenate(column)[:count] for column in columns))


def draw_any(vocabulary: Vocabulary, count: int, random: np.random.Generator) -> SceneTable:
    """Random scenes of any split: 55 % one object, 18 % two side by side, 7 % stacked, 20 % alike."""
    words = len(vocabulary.words)
    first = random.integers(words, size=count)
    second = (first + random.integers(1, max(2, words), size=count)) % words
    kind = np.searchsorted([0.55, 0.73, 0.80], random.random(count), side="right")
    kind = np.where((second == first) & ((kind == 1) | (kind == 2)), 3, kind)
    single, row = kind == 0, kind == 3
    three = row & (random.random(count) < 0.5)
    place = np.where(single & (random.random(count) < 0.5), random.integers(1, 5, size=count), 0)
    small = np.where(random.random(count) < 0.3, 2, 0)
    size = np.where(single & (place == 0), small, np.where(three, 2, 1))
    concepts = np.full((count, MOST_OBJECTS), -1)
    concepts[:, 0] = first
    concepts[~single, 1] = np.where(row, first, second)[~single]
    concepts[three, 2] = first[three]
    across, down = _centres(kind, place, three)
    shift = random.uniform(-_JITTER, _JITTER, (count, MOST_OBJECTS, 2))
    # Pictures in a line keep their line, or three alike would look like a dance.
    stack = (kind == 2)[:, None]
    across = across + np.where(stack, shift[:, :1, 0], shift[:, :, 0])
    down = down + np.where(stack, shift[:, :, 1], shift[:, :1, 1])
    shares = np.array(list(SIDE_SHARE.values()))[size]
    return SceneTable(
        vocabulary,
        random.integers(len(vocabulary.styles), size=count),
        random.integers(len(COLOURS), size=count),
        kind, place, size, concepts, across, down,
        shares * random.uniform(SMALLEST_SHARE, 1.0, count),
    )  # fmt: skip


def draw_scene(words: tuple[str, ...], styles: tuple[str, ...], random: np.random.Generator) -> Scene:
    """One random scene of any split."""
    return draw_any(Vocabulary(words, styles), 1, random).scene(0)


def splits_of(table: SceneTable) -> np.ndarray:
    """The split of every scene, as `split_of` gives it for each."""
    style_out, colour_out, pair_out, aside = _split_tables(table.vocabulary)
    concepts = table.concepts
    present, known = concepts >= 0, concepts.clip(min=0)
    style, colour = table.style[:, None], table.colour[:, None]
    held = ((style_out[known, style] | colour_out[known, colour]) & present).any(axis=1)
    two = (table.arrangement == 1) | (table.arrangement == 2)
    held |= two & pair_out[known[:, 0], known[:, 1]]
    validation = (aside[known, style, colour] & present).any(axis=1)
    return np.where(held, "held-out", np.where(validation, "validation", "train"))


@lru_cache(maxsize=4)
def _split_tables(vocabulary: Vocabulary) -> tuple[Bool[np.ndarray, "..."], ...]:
    words, styles, colours = vocabulary.words, vocabulary.styles, tuple(COLOURS)
    return (
        np.array([[held_out_style(word, style) for style in styles] for word in words]),
        np.array([[held_out_colour(word, colour) for colour in colours] for word in words]),
        np.array([[held_out_pair(one, other) for other in words] for one in words]),
        np.array(
            [[[kept_aside(word, style, colour) for colour in colours] for style in styles] for word in words]
        ),
    )


def _centres(
    kind: Int[np.ndarray, " scenes"], place: Int[np.ndarray, " scenes"], three: Bool[np.ndarray, " scenes"]
) -> tuple[Float[np.ndarray, "scenes 3"], Float[np.ndarray, "scenes 3"]]:
    across, down = np.full((len(kind), MOST_OBJECTS), 0.5), np.full((len(kind), MOST_OBJECTS), 0.5)
    across[:, 0] = np.select([place == 1, place == 2], [_NEAR, _FAR], 0.5)
    down[:, 0] = np.select([place == 3, place == 4], [_NEAR, _FAR], 0.5)
    beside = (kind == 1) | ((kind == 3) & ~three)
    across[beside, 0], across[beside, 1] = _NEAR, _FAR
    down[kind == 2, 0], down[kind == 2, 1] = _NEAR, _FAR
    across[three] = (0.17, 0.5, 0.83)
    return across, down
