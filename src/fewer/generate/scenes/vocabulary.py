"""The words of the composed scenes: concepts, drawing styles, background colours.

A concept is an emoji name of the npm packages `@iconify-json/*` (Unicode short names in kebab case) with
the word that people use for it: the package says `cat-face`, a caption says "cat".
"""

from dataclasses import dataclass
from pathlib import Path

from fewer.core.errors import ConfigError
from fewer.core.files import read_json


@dataclass(frozen=True, slots=True)
class Style:
    """One way of drawing: the npm package that holds it and the words that captions use."""

    name: str
    package: str
    words: tuple[str, ...]
    licence: str


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which concepts and styles scenes are drawn from."""

    words: tuple[str, ...]
    styles: tuple[str, ...]


STYLES = {
    "glossy": Style("glossy", "@iconify-json/noto", ("glossy",), "Apache-2.0"),
    "flat": Style("flat", "@iconify-json/fluent-emoji-flat", ("flat",), "MIT"),
    "soft 3d": Style("soft 3d", "@iconify-json/fluent-emoji", ("soft 3d", "3d"), "MIT"),
    "bold flat": Style("bold flat", "@iconify-json/twemoji", ("bold flat",), "CC-BY-4.0"),
}
"""OpenMoji is missing on purpose: its licence is share-alike."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "black": (22, 22, 26),
    "gray": (140, 142, 148),
    "red": (206, 52, 60),
    "orange": (246, 142, 52),
    "yellow": (250, 220, 96),
    "green": (92, 172, 92),
    "teal": (30, 128, 132),
    "blue": (66, 112, 214),
    "purple": (128, 80, 180),
    "pink": (246, 170, 204),
    "brown": (128, 88, 62),
}

# Fifty concepts that differ in shape and colour, for the edition that two CPU cores can train.
SMALL_VOCABULARY: dict[str, str] = {
    "red-apple": "apple", "banana": "banana", "lemon": "lemon", "grapes": "grape", "strawberry": "strawberry",
    "watermelon": "watermelon", "pineapple": "pineapple", "carrot": "carrot", "broccoli": "broccoli",
    "mushroom": "mushroom", "pizza": "pizza", "hamburger": "hamburger", "doughnut": "donut",
    "birthday-cake": "cake", "cat-face": "cat", "dog-face": "dog", "frog": "frog", "lion": "lion",
    "panda": "panda", "pig-face": "pig", "fox": "fox", "baby-chick": "chick", "penguin": "penguin",
    "tropical-fish": "fish", "octopus": "octopus", "butterfly": "butterfly", "lady-beetle": "ladybug",
    "spouting-whale": "whale", "turtle": "turtle", "fire": "fire", "star": "star", "sun": "sun",
    "rainbow": "rainbow", "snowman": "snowman", "red-heart": "heart", "balloon": "balloon",
    "rocket": "rocket", "bus": "bus", "automobile": "car", "sailboat": "sailboat", "house": "house",
    "deciduous-tree": "tree", "cactus": "cactus", "sunflower": "sunflower", "tulip": "tulip",
    "soccer-ball": "soccer ball", "trophy": "trophy", "crown": "crown",
}  # fmt: skip

ALIASES: dict[str, str] = {
    "apple": "red apple", "heart": "red heart", "star": "yellow star", "fire": "flame", "bus": "yellow bus",
    "tree": "green tree", "frog": "green frog", "panda": "panda bear", "banana": "yellow banana",
    "smiley": "grinning face", "santa": "santa claus", "gas pump": "fuel pump", "trash can": "waste basket",
    "chef": "cook", "grandfather": "old man", "grandmother": "old woman", "thumbs-up": "thumb up",
}  # fmt: skip
"""Another word for some concepts: colours of things must not be taken for colours of backgrounds."""

_WIDE_CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")

_ODD_PLURALS = {
    "fish": "fish",
    "cactus": "cacti",
    "butterfly": "butterflies",
    "strawberry": "strawberries",
    "die": "dice",
    "mouse": "mice",
    "wolf": "wolves",
    "scarf": "scarves",
    "maple leaf": "maple leaves",
    "goose": "geese",
    "superhero": "superheroes",
    "foot": "feet",
    "tooth": "teeth",
    "computer mouse": "computer mice",
    "fork and knife": "forks and knives",
    "nut and bolt": "nuts and bolts",
    "fleur-de-lis": "fleurs-de-lis",
    "old man": "old men",
    "old woman": "old women",
    "thumb up": "thumbs up",
    **{word: word for word in ("sheep", "deer", "bison", "moose", "squid", "jellyfish", "pufferfish")},
    **{word: word for word in ("shrimp", "fried shrimp", "moai", "santa claus", "biceps")},
    **{word: word + "es" for word in ("potato", "tomato", "mango", "volcano", "tornado")},
}


def plural(word: str) -> str:
    """More than one of a concept's word: "cat" -> "cats", "bus" -> "buses"."""
    for between in (" of ", " with "):
        first, found, rest = word.partition(between)
        if found:
            return f"{plural(first)}{between}{rest}"
    if word in _ODD_PLURALS:
        return _ODD_PLURALS[word]
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def wide_vocabulary(packages: Path, styles: tuple[str, ...]) -> dict[str, str]:
    """Concepts that every style's package draws: animals, food, travel, activities, objects; short names.

    `packages` is the `node_modules` folder. Raises `FileError` when a package is not there.
    """
    shared: set[str] | None = None
    for style in styles:
        icons = read_json(packages / _package(style) / "icons.json", max_bytes=2**28)["icons"]
        shared = set(icons) if shared is None else shared & set(icons)
    listed = read_json(packages / "@iconify-json/noto" / "metadata.json")["categories"]
    names = [name for category in _WIDE_CATEGORIES for name in listed.get(category, ())]
    chosen = [name for name in names if shared and name in shared and name.count("-") <= 2]
    return {name: SMALL_VOCABULARY.get(name, name.replace("-", " ")) for name in dict.fromkeys(chosen)}  # pyright: ignore


def _package(style: str) -> str:
    if style not in STYLES:
        raise ConfigError(f"style {style!r} is not known; allowed: {', '.join(STYLES)}")
    return STYLES[style].package
