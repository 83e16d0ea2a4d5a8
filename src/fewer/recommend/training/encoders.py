"""What the training loop asks of a network, and how a network becomes a scorer."""

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

LearnsFrom = Literal["prefixes", "positions", "cloze"]


@runtime_checkable
class SequenceEncoder(Protocol):
    """A module that turns histories into vectors whose inner product with an item's vector is its score.

    `learns_from` says what one training example is: a (prefix, next item) pair, every position of a
    sequence at once (causal models, which then also have `encode_all`), or masked items (`cloze`).
    """

    learns_from: LearnsFrom
    item_embedding: nn.Embedding

    def __call__(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]: ...


class NetworkScorer:
    """Scores all items with a network, in evaluation mode and without gradients."""

    def __init__(self, network: nn.Module, items: int) -> None:
        self.network, self.items = network, items

    def scores(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch items_and_padding"]:
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad():
            table = item_table(self.network, self.items)
            result = self.network(histories.to(table.device)) @ table.T
        self.network.train(was_training)
        return result


def item_table(network: nn.Module, items: int) -> Float[Tensor, "items_and_padding dim"]:
    """Vectors of padding and the V items (BERT4Rec's mask token lies beyond them)."""
    return network.get_submodule("item_embedding").weight[: items + 1]
