"""From the pieces of a prompt, and the things found among them, to a caption of the form that was trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fewer.generate.reading.words import Piece
from fewer.generate.scenes.captions import with_article
from fewer.generate.scenes.vocabulary import plural

_GROUNDS = {
    "background", "backdrop", "table", "wall", "floor", "sky", "paper", "field", "surface",
}  # fmt: skip
_ABOVE = {"above", "over", "on", "atop", "riding"}
_BELOW = {"below", "under", "underneath", "beneath"}
_PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing in a sentence: its name, the place of its piece, and how many ("" for one)."""

    name: str
    place: int
    count: str = ""


def caption_of(pieces: Sequence[Piece], things: Sequence[Thing]) -> str:
    """The caption that tells of one or two things what the pieces tell."""
    style = next((piece.value for piece in pieces if piece.kind == "style"), "")
    colour = background_of(pieces)
    ground = f" on {with_article(colour)} background" if colour else ""
    first, last = things[0], things[-1]
    if first.name != last.name:
        one, other = (with_article(f"{style} {thing.name}".strip()) for thing in (first, last))
        return _related(one, other, [piece.text for piece in pieces[first.place + 1 : last.place]]) + ground
    count = first.count or ("two" if len(things) > 1 else "")
    if count:
        return " ".join(part for part in (count, style, plural(first.name)) if part) + ground
    small = "small" if any(piece.kind == "small" for piece in pieces) else ""
    words = " ".join(part for part in (small, style, first.name) if part)
    return with_article(words) + _place(pieces[first.place :]) + ground


def background_of(pieces: Sequence[Piece]) -> str:
    """The colour before "background" and the like, or after "on" where it is not that of a thing."""
    for place, piece in enumerate(pieces):
        if piece.kind != "colour":
            continue
        after = pieces[place + 1] if place + 1 < len(pieces) else None
        before = [other.text for other in pieces[max(0, place - 2) : place]]
        alone = after is None or after.kind in ("mark", "style")
        if (after is not None and after.text in _GROUNDS) or (alone and "on" in before):
            return piece.value
    return ""


def _related(one: str, other: str, between: Sequence[str]) -> str:
    if "right" in between:
        return f"{other} to the left of {one}"
    if not _BELOW.isdisjoint(between):
        return f"{one} below {other}"
    if not _ABOVE.isdisjoint(between):
        return f"{one} above {other}"
    return f"{one} to the left of {other}"


def _place(pieces: Sequence[Piece]) -> str:
    """Where the thing lies, if that is said behind it: "the top of a mountain" is no place of the picture."""
    texts = [piece.text for piece in pieces]
    for before, place in pairwise(texts):
        if before == "the" and place in _PLACES:
            return f" {_PLACES[place]}"
    return ""
