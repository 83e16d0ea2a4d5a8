"""Which name of a list a word is nearest to, by the text model's own hidden states."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.generate.text import PromptEncoder

_BATCH = 64


class NearestName:
    """Cosine similarity of the last token's state of "a NAME", each channel set to mean 0 and spread 1."""

    def __init__(self, encoder: PromptEncoder, names: Sequence[str]) -> None:
        self._encoder = encoder
        self._names = tuple(names)
        states = self._states(self._names)
        self._mean, self._spread = states.mean(dim=0), states.std(dim=0) + 1e-3
        self._table = self._compared(states)

    def __call__(self, words: Sequence[str]) -> list[tuple[str, float]]:
        """For each word the nearest name and how near it is, at most 1."""
        if not words:
            return []
        near = (self._compared(self._states(words)) @ self._table.T).max(dim=1)
        return [
            (self._names[which], value)
            for which, value in zip(*(x.tolist() for x in near[::-1]), strict=True)
        ]

    def _compared(self, states: Float[Tensor, "words channels"]) -> Float[Tensor, "words channels"]:
        return torch.nn.functional.normalize((states - self._mean) / self._spread, dim=1)

    def _states(self, words: Sequence[str]) -> Float[Tensor, "words channels"]:
        said = [f"a {word}" for word in words]
        # Alike lengths together: little is spent on padding.
        order = sorted(range(len(said)), key=lambda place: len(self._encoder.tokenizer.encode(said[place])))
        rows: list[Tensor] = [torch.empty(0)] * len(said)
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            read = self._encoder.encode([said[place] for place in places], instruct=False)
            for place, tokens, mask in zip(places, read.tokens, read.mask, strict=True):
                rows[place] = tokens[int(mask.sum()) - 1].float()
        return torch.stack(rows)
