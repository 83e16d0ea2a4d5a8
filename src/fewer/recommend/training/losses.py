"""What a next-item model can be trained on: from all items at once to one negative at a time.

Every loss takes the encoded histories, the item table and the targets. Full cross-entropy is the default
because it lifts SASRec's NDCG by 36 % to 160 % over one negative (arXiv 2309.07602).
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from fewer.core.errors import ConfigError

LossName = Literal["cross-entropy", "sampled-softmax", "binary", "generalised-binary", "bpr"]
GBCE_CALIBRATION = 0.75  # t of gSASRec (arXiv 2308.07192)
CHUNK_ROWS = 128  # their scores stay in the processor's cache while they are turned into gradients


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
        return full_cross_entropy(encoded, table[1:], targets - 1)
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


def full_cross_entropy(
    encoded: Float[Tensor, "rows dim"], table: Float[Tensor, "items dim"], targets: Int[Tensor, "rows"]
) -> Float[Tensor, ""]:
    """Mean of -log softmax(encoded @ table.T)[target]; targets are rows of `table`.

    On a CPU the (rows, items) scores are never whole in memory: a chunk of rows is scored, turned into its
    gradient in place and multiplied back while it is in the cache. [measured, one core, 1,024 rows, 23,715
    items, with gradients: 548 ms -> 320 ms.]
    """
    if encoded.device.type != "cpu" or encoded.dtype != torch.float32:
        return functional.cross_entropy(encoded @ table.T, targets)
    return _ChunkedCrossEntropy.apply(encoded, table, targets)  # pyright: ignore


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, where the softmax is at hand; the backward pass scales them."""

    @staticmethod
    def forward(ctx: Any, encoded: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        rows, total = len(encoded), encoded.new_zeros(())
        wants_encoded, wants_table = ctx.needs_input_grad[:2]
        encoded_gradient = torch.empty_like(encoded) if wants_encoded else None
        table_gradient = torch.zeros_like(table) if wants_table else None
        scratch = encoded.new_empty(min(CHUNK_ROWS, rows), len(table))
        for start in range(0, rows, CHUNK_ROWS):
            part, wanted = encoded[start : start + CHUNK_ROWS], targets[start : start + CHUNK_ROWS, None]
            scores = torch.mm(part, table.T, out=scratch[: len(part)])
            largest, own = scores.amax(1, keepdim=True), scores.gather(1, wanted)
            shares = scores.sub_(largest).exp_()
            sums = shares.sum(1, keepdim=True)
            total += (sums.log() + largest - own).sum()
            shares.scatter_add_(1, wanted, -sums)  # softmax minus one-hot, times sums
            if encoded_gradient is not None:
                encoded_gradient[start : start + CHUNK_ROWS] = (shares @ table) / (sums * rows)
            if table_gradient is not None:
                table_gradient.addmm_(shares.T, part / (sums * rows))
        ctx.save_for_backward(encoded_gradient, table_gradient)
        return total / rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gradients = [g if g is None else g * upstream[0] for g in ctx.saved_tensors]
        return gradients[0], gradients[1], None


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
