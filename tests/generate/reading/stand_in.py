"""A text model that needs no weights: a word's state is which letters it has."""

from collections.abc import Sequence

import torch

from fewer.generate.text import PromptEncoder, TextEmbedding


class _Spelling:
    """Words in `rare` have several tokens, as misspelled words do."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __init__(self, rare: tuple[str, ...]) -> None:
        self.rare = rare

    def encode(self, text: str) -> list[int]:
        return [1, 2] if text.strip() in self.rare else [1]


class Letters(PromptEncoder):
    """Keeps what it was asked to read."""

    def __init__(self, rare: tuple[str, ...] = ()) -> None:
        super().__init__(torch.nn.Identity(), _Spelling(rare), instruction=None)
        self.read: list[str] = []

    def encode(self, prompts: Sequence[str], *, instruct: bool = True) -> TextEmbedding:
        self.read += prompts
        states = torch.zeros(len(prompts), 2, 26)
        for row, one in enumerate(prompts):
            for letter in one[2:]:
                if "a" <= letter <= "z":
                    states[row, 1, ord(letter) - 97] = 1
        return TextEmbedding(states, torch.ones(len(prompts), 2, dtype=torch.bool))
