"""The words of a prompt, and which of them a model of scenes knows: things, styles, colours, numbers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fewer.generate.scenes.vocabulary import ALIASES, COLOURS, STYLES, plural

Kind = Literal["thing", "style", "colour", "count", "small", "word", "mark"]

_TWO = ("2", "both", "couple", "pair")
_THREE = (
    "3", "4", "5", "6", "7", "8", "9", "10", "four", "five", "six", "seven", "eight", "nine", "ten",
    "dozen", "several", "many", "few", "lots",
)  # fmt: skip
"""The model draws three at most."""
_OTHER_WORDS = {"grey": "gray", "violet": "purple", "shiny": "glossy"}
SMALL_WORDS = {
    "a", "an", "the", "this", "that", "these", "those", "my", "your", "his", "her", "its", "our", "their",
    "of", "in", "on", "at", "to", "for", "from", "by", "is", "are", "was", "be", "being", "has", "have", "as",
    "into", "me", "draw", "drawing", "paint", "painting", "painted", "make", "show", "give", "picture",
    "photo", "photograph", "image", "icon", "logo", "sketch", "illustration", "cartoon", "art", "artwork",
    "digital", "style", "render", "watercolor", "background", "detailed", "highly", "simple", "cute",
    "beautiful", "nice", "lighting", "quality", "left", "right", "top", "bottom", "side", "very", "symbol",
    "some", "bunch",
}  # fmt: skip
"""What is never taken for a thing: how sentences and wishes for pictures are made."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One or several words that mean one thing; `value` is the model's own word for it."""

    kind: Kind
    text: str
    value: str = ""
    many: bool = False
    """A plural."""
    trained: bool = True
    """The model was trained on it in this form."""


class Lexicon:
    """Every form in which the things, styles, colours and numbers of scenes are written."""

    def __init__(self, names: Sequence[str], styles: Iterable[str]) -> None:
        self._forms: dict[tuple[str, ...], Piece] = {}
        for name in names:
            self._add(Piece("thing", name, name))
        for name in names:
            self._add(Piece("thing", plural(name), name, many=True))
            if (alias := ALIASES.get(name)) is not None:
                self._add(Piece("thing", alias, name))
                self._add(Piece("thing", plural(alias), name, many=True))
        for name in names:  # "pair of scissors": people say scissors
            if " of " in name:
                self._add(Piece("thing", name.split(" of ", 1)[1], name, trained=False))
        for style in styles:
            for word in STYLES[style].words:
                self._add(Piece("style", word, word))
        for colour in COLOURS:
            self._add(Piece("colour", colour, colour))
        for word, other in _OTHER_WORDS.items():
            self._add(Piece("colour" if other in COLOURS else "style", word, other, trained=False))
        for count, words in (("two", _TWO), ("three", _THREE)):
            self._add(Piece("count", count, count))
            for word in words:
                self._add(Piece("count", word, count, trained=False))
        for word in ("small", "tiny", "little"):
            self._add(Piece("small", word, "small", trained=word == "small"))
        self._longest = max(len(words) for words in self._forms)
        self.single_words = [
            form[0] for form, piece in self._forms.items() if piece.kind == "thing" and len(form) == 1
        ]

    def pieces(self, text: str) -> list[Piece]:
        """The text cut into the longest known pieces, left to right, and the words and marks between."""
        words, found, place = _words(text), [], 0
        while place < len(words):
            forms = (tuple(words[place : place + size]) for size in range(self._longest, 0, -1))
            form = next((form for form in forms if form in self._forms), None)
            if form is None:
                form = (words[place],)
                found.append(Piece("word" if form[0].isalnum() else "mark", form[0]))
            else:
                found.append(self._forms[form])
            place += len(form)
        return found

    def _add(self, piece: Piece) -> None:
        self._forms.setdefault(tuple(_words(piece.text)), piece)


def singular(word: str) -> str:
    """A guess: "puppies" -> "puppy"; "dress" stays."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def _words(text: str) -> list[str]:
    """Lower-case words and marks: "The king's T-Rex!" -> the, king, t, rex, !"""
    plain = re.sub(r"'s\b|'", "", text.lower().replace("\u2019", "'"))
    return re.findall(r"[^\W_]+|[,.;:!?]", plain)
