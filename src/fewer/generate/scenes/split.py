"""Which scenes are kept out of training: a hash decides, so nobody can pick.

Concepts, styles and colours are all seen; some of their *combinations* are not:
15 % of (concept, style), 15 % of (left concept, right concept), 10 % of (concept, colour). Of what is left,
4 % of (concept, style, colour) are for validation: guidance and editions are
chosen on them, never on the rest.
"""

import hashlib
from typing import Literal

from fewer.generate.scenes.compose import Scene

Split = Literal["train", "validation", "held-out"]

HELD_OUT_STYLE = 0.15
HELD_OUT_PAIR = 0.15
HELD_OUT_COLOUR = 0.10
VALIDATION = 0.04


def split_of(scene: Scene) -> Split:
    """The split that a scene belongs to; a pure function of its words."""
    if held_out_reasons(scene):
        return "held-out"
    aside = any(kept_aside(thing.concept, scene.style, scene.colour) for thing in scene.objects)
    return "validation" if aside else "train"


def held_out_reasons(scene: Scene) -> tuple[str, ...]:
    """Which of its combinations are held out: "style", "pair", "colour"; empty for a seen one."""
    concepts = [thing.concept for thing in scene.objects]
    reasons = []
    if any(held_out_style(concept, scene.style) for concept in concepts):
        reasons.append("style")
    if len(set(concepts)) > 1 and held_out_pair(concepts[0], concepts[1]):
        reasons.append("pair")
    if any(held_out_colour(concept, scene.colour) for concept in concepts):
        reasons.append("colour")
    return tuple(reasons)


def held_out_style(concept: str, style: str) -> bool:
    """Whether a concept is never shown in a style."""
    return _share("style", concept, style) < HELD_OUT_STYLE


def held_out_pair(first: str, second: str) -> bool:
    """Whether two concepts are never shown in this order."""
    return _share("pair", first, second) < HELD_OUT_PAIR


def held_out_colour(concept: str, colour: str) -> bool:
    """Whether a concept is never shown on a background."""
    return _share("colour", concept, colour) < HELD_OUT_COLOUR


def kept_aside(concept: str, style: str, colour: str) -> bool:
    """Whether a concept in a style on a background is for validation."""
    return _share("validation", concept, style, colour) < VALIDATION


def _share(*words: str) -> float:
    """A number in [0, 1) that looks random and is the same on every machine."""
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
