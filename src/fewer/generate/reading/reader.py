"""A prompt in anybody's words, said in those of the captions that the built-in model was trained on.

Its text model reads every word, but its transformer has seen captions of a few forms only: other words pull
the picture away from what it knows ("a snowman in winter" is a worse snowman than "a snowman"). The reader
keeps what can be drawn: one or two things, their number, how they lie, style, background. A word that is no
name is taken for the name that the text model holds nearest, if that is near enough.
"""

import difflib
from collections.abc import Iterator, Sequence
from functools import cached_property

from fewer.generate.reading.nearest import NearestName
from fewer.generate.reading.sentence import Thing, caption_of
from fewer.generate.reading.words import SMALL_WORDS, Lexicon, Piece, singular
from fewer.generate.scenes.captions import TEMPLATES, WHERE, with_article
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.vocabulary import plural
from fewer.generate.text import PromptEncoder

NEAR = 0.5
"""Similarity from which a word is taken for a name."""
_SPELLED_ALIKE = 0.8
_MOST = 64
"""Words and marks that are looked at: the model itself reads 40 tokens."""
_JOINING = {
    "and", "with", "plus", "beside", "near", "next", "above", "below", "under", "underneath", "beneath",
    "over",
}  # fmt: skip
_SUBJECTS = {"i", "you", "we", "they", "he", "she", "it", "who", "please", "no", "not", "without"}
"""Before a verb, or before what is not there: no saw in "I saw a dog", no hat in "without hat"."""


class PromptReader:
    """Reads prompts for a model that knows `names` in `styles`."""

    def __init__(self, encoder: PromptEncoder, names: Sequence[str], styles: Sequence[str]) -> None:
        self._encoder = encoder
        self._names = tuple(names)
        self._lexicon = Lexicon(names, styles)
        self._captions = {_form(self._lexicon.pieces(one)) for one in _captions(names[0], styles[0])}

    def read(self, prompt: str) -> str:
        """The sentence to draw: the prompt itself if it is a caption already, or nothing in it is known."""
        pieces = self._lexicon.pieces(prompt)
        if all(piece.trained for piece in pieces) and _form(pieces) in self._captions:
            return prompt
        pieces = [self._spelled(piece) for piece in pieces[:_MOST]]
        things = self._things(pieces)
        return caption_of(pieces, things) if things else prompt

    def _spelled(self, piece: Piece) -> Piece:
        """A name for a word that is nearly one, unless the text model has a token for that word."""
        word = piece.text
        if piece.kind != "word" or len(word) < 5 or len(self._encoder.tokenizer.encode(f" {word}")) < 2:
            return piece
        alike = difflib.get_close_matches(word, self._lexicon.single_words, 1, _SPELLED_ALIKE)
        right = alike and (alike[0][0] == word[0] or alike[0].endswith(word))  # a burger: a hamburger
        return self._lexicon.pieces(alike[0])[0] if right else piece

    def _things(self, pieces: list[Piece]) -> list[Thing]:
        """At most two, in their order: what is named, and what a phrase without a name may mean."""
        found: list[Thing] = []
        for start, end in _phrases(pieces):
            named = [place for place in range(start, end) if _is_thing(pieces, place)]
            # Of "baby penguin" the last word says what it is.
            here = [
                _thing(pieces, place, pieces[place].value, pieces[place].many)
                for place in named
                if place + 1 not in named
            ]
            if not here and (not found or _joins(pieces, start)):
                here = self._guessed(pieces, start, end)
            found += here
        return found[:2]

    def _guessed(self, pieces: list[Piece], start: int, end: int) -> list[Thing]:
        """The thing that a phrase without a name is nearest to, if any is near enough."""
        places = [place for place in range(start, end) if _may_mean(pieces, place)]
        if not places:
            return []
        words = [pieces[place].text for place in places]
        single = [singular(word) for word in words]
        near = max(zip(self._nearest(single), places, words, single, strict=True), key=lambda one: one[0][1])
        (name, value), place, word, one = near
        return [_thing(pieces, place, name, word != one)] if value >= NEAR else []

    @cached_property
    def _nearest(self) -> NearestName:
        return NearestName(self._encoder, self._names)


def reader_of(words: str | None, encoder: PromptEncoder) -> PromptReader | None:
    """The reader for a model of the preset `words`; None for a model without words of its own."""
    if words is None:
        return None
    chosen = preset(words)
    assert chosen.concepts is not None
    return PromptReader(encoder, tuple(chosen.concepts.values()), chosen.styles)


def _captions(name: str, style: str) -> Iterator[str]:
    """One caption of every form that was trained."""
    fields = {"name": name, "plain": name, "a_name": with_article(name), "other": name, "names": plural(name)}
    fields |= {"a_other": with_article(name), "count": "two", "style": style, "a_style": with_article(style)}
    fields |= {"colour": "red", "a_colour": "a red"}
    for templates in TEMPLATES.values():
        for template in templates:
            for place in WHERE.values():
                yield template.format(**fields, place=place)


def _form(pieces: Sequence[Piece]) -> tuple[str, ...]:
    """What two captions of the same template share."""
    form: list[str] = []
    for piece in pieces:
        if piece.kind in ("word", "mark"):
            form += [] if piece.text in ("a", "an") else [piece.text]
        elif piece.kind == "thing":  # two deer: some plurals look like singulars
            many = piece.many or ("count" in form and plural(piece.text) == piece.text)
            form.append("things" if many else "thing")
        elif piece.kind != "small":
            form.append(piece.kind)
    return tuple(form)


def _phrases(pieces: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    """From one mark or joining word to the next."""
    start = 0
    for place in range(1, len(pieces)):
        if pieces[place].kind == "mark" or _joins(pieces, place):
            yield start, place
            start = place
    if pieces:
        yield start, len(pieces)


def _joins(pieces: Sequence[Piece], place: int) -> bool:
    """Whether another thing may follow: "next to" it, "to the left of" it."""
    word = pieces[place].text
    return word in _JOINING or (word == "of" and place > 0 and pieces[place - 1].text in ("left", "right"))


def _is_thing(pieces: Sequence[Piece], place: int) -> bool:
    return pieces[place].kind == "thing" and (place == 0 or pieces[place - 1].text not in _SUBJECTS)


def _may_mean(pieces: Sequence[Piece], place: int) -> bool:
    piece = pieces[place]
    told = (
        piece.kind != "word"
        or piece.text in SMALL_WORDS | _JOINING | _SUBJECTS
        or len(piece.text) < 3
        or not piece.text.isalpha()
    )
    return not told and (place == 0 or pieces[place - 1].text not in _SUBJECTS)


def _thing(pieces: Sequence[Piece], place: int, name: str, many: bool) -> Thing:
    """With the number that stands up to three pieces before it; a plural without one is three."""
    before = [
        piece for piece in pieces[max(0, place - 3) : place] if piece.kind in ("count", "thing", "mark")
    ]
    count = before[-1].value if before and before[-1].kind == "count" else ""
    return Thing(name, place, count or ("three" if many else ""))
