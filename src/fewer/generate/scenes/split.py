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
    for thing in scene.objects:
        if _share("validation", thing.concept, scene.style, scene.colour) < VALIDATION:
            return "validation"
    return "train"


def held_out_reasons(scene: Scene) -> tuple[str, ...]:
    """Which of its combinations are held out: "style", "pair", "colour"; empty for a seen one."""
    concepts = [thing.concept for thing in scene.objects]
    reasons = []
    if any(_share("style", concept, scene.style) < HELD_OUT_STYLE for concept in concepts):
        reasons.append("style")
    if len(set(concepts)) > 1 and _share("pair", *concepts) < HELD_OUT_PAIR:
        reasons.append("pair")
    if any(_share("colour", concept, scene.colour) < HELD_OUT_COLOUR for concept in concepts):
        reasons.append("colour")
    return tuple(reasons)


def _share(*words: str) -> float:
    """A number in [0, 1) that looks random and is the same on every machine."""
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
