"""What a next-item model can be trained on: from all items at once to one negative at a time.

Every loss takes the encoded histories, the item table and the targets. Full cross-entropy is the default
because it lifts SASRec's NDCG by 36 % to 160 % over one negative (arXiv 2309.07602).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from fewer.core.errors import ConfigError

LossName = Literal["cross-entropy", "sampled-softmax", "binary", "generalised-binary", "bpr"]
GBCE_CALIBRATION = 0.75  # t of gSASRec (arXiv 2308.07192)


def next_item_loss(
    name: str,
    encoded: Float[Tensor, "rows dim"],
    table: Float[Tensor, "items_and_padding dim"],
    targets: Int[Tensor, "rows"],
    generator: torch.Generator,
    negatives: int = 256,
) -> Float[Tensor, ""]:
    """Mean loss over the rows. `table` row 0 is padding; targets are 1..V. Negatives are drawn uniformly."""
    if name == "cross-entropy":
        return functional.cross_entropy(encoded @ table[1:].T, targets - 1)
    if name == "sampled-softmax":
        return sampled_softmax(encoded, table, targets, generator, negatives)
    items = len(table) - 1
    if items < 2:
        raise ConfigError(f"loss {name!r} needs at least 2 items to draw negatives from, there are {items}")
    count = 1 if name in ("binary", "bpr") else negatives
    drawn = draw_negatives(targets, items, count, generator)
    positive = (encoded * table[targets]).sum(-1)
    negative = torch.einsum("rd,rnd->rn", encoded, table[drawn])
    if name == "bpr":
        return -functional.logsigmoid(positive - negative[:, 0]).mean()
    if name == "binary":
        return -(functional.logsigmoid(positive) + functional.logsigmoid(-negative[:, 0])).mean()
    if name == "generalised-binary":
        beta = gbce_beta(count, items)
        # sigmoid(s)^beta has the logarithm beta * logsigmoid(s)
        return -(beta * functional.logsigmoid(positive) + functional.logsigmoid(-negative).sum(-1)).mean()
    raise ConfigError(
        f"loss {name!r} is not known; "
        "allowed: cross-entropy, sampled-softmax, binary, generalised-binary, bpr"
    )


def gbce_beta(negatives: int, items: int, calibration: float = GBCE_CALIBRATION) -> float:
    """beta = alpha (t (1 - 1/alpha) + 1/alpha), alpha = negatives / (V - 1) (gSASRec, equation 14)."""
    alpha = min(negatives / max(items - 1, 1), 1.0)
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)


def draw_negatives(
    targets: Int[Tensor, "rows"], items: int, count: int, generator: torch.Generator
) -> Int[Tensor, "rows negatives"]:
    """Uniform over the items other than the row's target (shifting past it keeps the draw uniform)."""
    drawn = torch.randint(1, items, (len(targets), count), generator=generator).to(targets.device)
    return drawn + (drawn >= targets[:, None])


def sampled_softmax(
    encoded: Float[Tensor, "rows dim"],
    table: Float[Tensor, "items_and_padding dim"],
    targets: Int[Tensor, "rows"],
    generator: torch.Generator,
    negatives: int,
) -> Float[Tensor, ""]:
    """Softmax over the target and `negatives` items shared by the batch, with log-q correction.

    Under uniform sampling each of the N shared negatives stands for (V - 1) / N items, so its logit is
    raised by log((V - 1) / N); a negative that is a row's target is hidden from that row.
    """
    items = len(table) - 1
    drawn = torch.randint(1, items + 1, (negatives,), generator=generator).to(targets.device)
    logits = encoded @ table[drawn].T + torch.log(torch.tensor(max(items - 1, 1) / negatives))
    logits = logits.masked_fill(drawn[None] == targets[:, None], float("-inf"))
    positive = (encoded * table[targets]).sum(-1, keepdim=True)
    return functional.cross_entropy(torch.cat([positive, logits], dim=1), torch.zeros_like(targets))
