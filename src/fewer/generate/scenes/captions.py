"""Several captions for a scene, each with a score for how much of the scene it tells.

The score plays the part of the CLIP score in Sana's caption sampling: 30 for a caption that tells everything,
less for one that leaves the style or the colour open, and never below 25, the usual threshold.
"""

from dataclasses import dataclass

import numpy as np

from fewer.generate.scenes.compose import Scene
from fewer.generate.scenes.vocabulary import ALIASES, STYLES, plural

_SINGLE = (
    "{a_style} {name}{place} on {a_colour} background",
    "{a_name}{place} on {a_colour} background, {style} style",
    "{style} style picture of {a_name}{place}, {colour} background",
    "{colour} background with {a_style} {name}{place}",
    "{a_name}{place} on {a_colour} background",
    "{a_style} {name}{place}",
    "{a_name}{place}",
    "{style} {plain}{place}, {colour} background",
    "{plain}{place}",
)
_PAIR = (
    "{a_name} to the left of {a_other} on {a_colour} background, {style} style",
    "{a_other} to the right of {a_name} on {a_colour} background, {style} style",
    "{a_style} {name} on the left and {a_style} {other} on the right, {colour} background",
    "{style} style picture of {a_name} next to {a_other}, {colour} background",
    "{a_name} and {a_other} on {a_colour} background",
    "{a_name} to the left of {a_other}",
    "{a_style} {name} to the left of {a_style} {other}",
)
_STACK = (
    "{a_name} above {a_other} on {a_colour} background, {style} style",
    "{a_other} below {a_name} on {a_colour} background, {style} style",
    "{a_style} {name} at the top and {a_style} {other} at the bottom, {colour} background",
    "{style} style picture of {a_name} above {a_other}, {colour} background",
    "{a_name} above {a_other} on {a_colour} background",
    "{a_name} above {a_other}",
    "{a_style} {name} above {a_style} {other}",
)
_ROW = (
    "{count} {style} {names} on {a_colour} background",
    "{count} {names} on {a_colour} background, {style} style",
    "{style} style picture of {count} {names}, {colour} background",
    "{count} {names} in a row, {style} style, {colour} background",
    "{count} {names} on {a_colour} background",
    "{count} {names}",
    "{count} {style} {names}",
)
TEMPLATES = {"single": _SINGLE, "pair": _PAIR, "stack": _STACK, "row": _ROW}
"""How scenes of each arrangement are told."""
WHERE = {
    "center": "",
    "left": " on the left",
    "right": " on the right",
    "top": " at the top",
    "bottom": " at the bottom",
}
_OTHER_WORDS = 0.3
"""Share of drawn captions that call things by their other names."""
_COUNTS = {1: "one", 2: "two", 3: "three"}


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence in lower case and its score (25 to 30)."""

    text: str
    score: float


def captions_of(scene: Scene) -> list[Caption]:
    """All captions of a scene, the plainest words first; every alias and every style word gives more."""
    found: dict[str, float] = {}
    plain = scene.concepts
    other = tuple(ALIASES.get(word, word) for word in plain)
    for concepts in dict.fromkeys((plain, other)):
        for words in STYLES[scene.style].words:
            fields = _fields(scene, concepts, words)
            for template in TEMPLATES[scene.arrangement]:
                found.setdefault(template.format(**fields), _score(template))
    return [Caption(text, score) for text, score in found.items()]


def draw_captions(scene: Scene, count: int, random: np.random.Generator) -> list[Caption]:
    """At most `count` different captions of a scene, drawn without writing all the others."""
    templates = TEMPLATES[scene.arrangement]
    found: dict[str, float] = {}
    for place in random.permutation(len(templates))[:count].tolist():
        styles = STYLES[scene.style].words
        concepts = scene.concepts
        if random.random() < _OTHER_WORDS:
            concepts = tuple(ALIASES.get(word, word) for word in concepts)
        words = styles[int(random.random() * len(styles))]
        found.setdefault(templates[place].format(**_fields(scene, concepts, words)), _score(templates[place]))
    return [Caption(text, score) for text, score in found.items()]


def _score(template: str) -> float:
    return 25.0 + 5.0 * (1 + ("style}" in template) + ("colour}" in template)) / 3


def full_caption(scene: Scene) -> str:
    """The first caption of `captions_of`: it tells everything."""
    return captions_of(scene)[0].text


def _fields(scene: Scene, concepts: tuple[str, ...], style: str) -> dict[str, str]:
    name, other = concepts[0], concepts[-1]
    size = f"{scene.size} " if scene.arrangement == "single" and scene.size == "small" else ""
    return {
        "name": name,
        "plain": size + name,
        "a_name": with_article(size + name),
        "other": other,
        "a_other": with_article(other),
        "names": plural(name),
        "count": _COUNTS[len(scene.objects)],
        "style": style,
        "a_style": with_article(size + style),
        "colour": scene.colour,
        "a_colour": with_article(scene.colour),
        "place": WHERE[scene.place],
    }


def with_article(words: str) -> str:
    """ "apple" -> "an apple"."""
    # "a unicorn", "a ukulele": a u that is spoken as in "you".
    vowel = words[0] in "aeio" or (words[0] == "u" and words[:3] not in ("uni", "uku", "use", "ufo"))
    vowel = vowel or words.startswith(("hour", "x-"))
    return f"{'an' if vowel else 'a'} {words}"
