"""Text made ready for the blocks: computed once per prompt, used in every step."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from fewer.generate.transformer.attention import KeysValues


@dataclass(frozen=True, slots=True)
class PreparedText:
    """Keys and values of every block's cross-attention, and which of them count."""

    blocks: tuple[KeysValues, ...]
    mask: Bool[Tensor, "batch length"] | None

    @property
    def batch(self) -> int:
        """Number of prompts."""
        return self.blocks[0].keys.shape[0]

    def asking_all(self) -> "PreparedText":
        """The same for layers whose weights differ from sample to sample: none is left out of the batch."""
        blocks = tuple(KeysValues(block.keys, block.values) for block in self.blocks)
        return PreparedText(blocks, self.mask)

    def select(self, rows: Int[Tensor, " chosen"]) -> "PreparedText":
        """The prompts at `rows`, in that order; a row may occur several times."""
        blocks = tuple(KeysValues(block.keys[rows], block.values[rows]) for block in self.blocks)
        return PreparedText(blocks, None if self.mask is None else self.mask[rows])


def drop_masked(
    text: Float[Tensor, "batch length channels"], mask: Shaped[Tensor, "batch length"]
) -> tuple[Float[Tensor, "batch kept channels"], Bool[Tensor, "batch kept"] | None]:
    """Moves each prompt's counting tokens to the front and cuts what no prompt needs.

    Cross-attention has no order, so the result is the same with fewer keys. The returned mask is None when
    every kept token counts. A prompt whose mask is empty keeps all its tokens, as a large negative bias on
    all of them would have had it.
    """
    mask = whole_if_empty(mask)
    counts = mask.sum(dim=1)
    kept = int(counts.max())
    order = torch.argsort(~mask, dim=1, stable=True)[:, :kept]
    text = torch.take_along_dim(text, order[:, :, None], dim=1)
    mask = torch.take_along_dim(mask, order, dim=1)
    return text, None if bool(mask.all()) else mask


def whole_if_empty(mask: Shaped[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
    """The mask as booleans, rows without any counting token turned into rows where all count."""
    mask = mask.bool()
    return mask | ~mask.any(dim=1, keepdim=True)


def leading_single(mask: Bool[Tensor, "batch length"]) -> int:
    """How many prompts in a row, from the first on, have one counting token: empty ones, as guidance has."""
    single = (mask.sum(dim=1) == 1).long()
    return int(single.cumprod(dim=0).sum())
