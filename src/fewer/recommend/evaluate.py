"""Full-ranking metrics: where among all V items does the model put the one that came next?

HR@k is the share of users whose next item is in the first k, NDCG@k gives 1 / log2(rank + 1), MRR@k gives
1 / rank. Ties are not luck: an item tied with others gets the expectation over their random order, so that a
constant scorer has HR@k = k / V and not 1. Recall@k equals HR@k here.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import ConfigError, DataError
from fewer.recommend.data.prefixes import Prefixes

logger = logging.getLogger(__name__)


@runtime_checkable
class Scorer(Protocol):
    """Anything that scores all items for a batch of left-padded histories."""

    def scores(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch items_and_padding"]:
        """Higher is better; column 0 (padding) is ignored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """For every question: how many items score higher than the target, how many tie with it (itself too)."""

    higher: Int[np.ndarray, "questions"]
    tied: Int[np.ndarray, "questions"]
    candidates: int
    """How many items competed."""


def rank_targets(
    scorer: Scorer,
    prefixes: Prefixes,
    positions: np.ndarray,
    *,
    exclude_seen: bool = False,
    batch_size: int = 512,
    sampled_negatives: int | None = None,
    warn: bool = True,
    seed: int = 0,
) -> Ranks:
    """Ranks each position's item among all items (or, with a warning, among sampled negatives).

    `exclude_seen` takes the items of the history out of the competition, except the target itself.
    Raises `DataError` when there is nothing to ask, or when a score is no finite number.
    """
    if len(positions) == 0:
        raise DataError(
            "nothing to evaluate: no user has a test target (leave-last-out asks for three interactions, "
            "temporal for some before the first cut and after the second)"
        )
    if sampled_negatives is not None and warn:
        logger.warning(
            "sampled metrics (%d negatives): 5 to 8 times larger than full ranking and known to order models "
            "wrongly; use them only to compare with old tables", sampled_negatives,
        )  # fmt: skip
    higher = np.zeros(len(positions), dtype=np.int64)
    tied = np.zeros(len(positions), dtype=np.int64)
    generator = seeded(seed, 7)
    candidates = 0
    whole = prefixes.whole()
    for rows, batch in prefixes.in_order(positions, batch_size):
        chosen = rows.numpy()  # a tensor of one element would be taken for a number
        # counted where the scores are: V floats a question are too many to move
        scores = scorer.scores(batch.histories).float()
        targets = batch.targets[:, None].to(scores.device)
        scores[:, 0] = float("-inf")
        own = scores.gather(1, targets)
        if not torch.isfinite(own).all():  # compared with anything, such a score would look like the best
            raise DataError(
                "the scores are no finite numbers: training diverged; try a smaller --learning-rate"
            )
        if exclude_seen:  # all of the history, of which the model may read the end alone
            seen = whole.gather(torch.from_numpy(positions[chosen]).long()).histories
            scores = scores.scatter(1, seen.to(scores.device), float("-inf"))
        candidates = scores.shape[1] - 1
        if sampled_negatives is not None:
            drawn = torch.randint(1, candidates + 1, (len(scores), sampled_negatives), generator=generator)
            drawn = drawn.to(scores.device)
            scores, candidates = scores.gather(1, drawn), sampled_negatives + 1
            scores.masked_fill_(drawn == targets, float("-inf"))
            higher[chosen] = (scores > own).sum(1).cpu().numpy()
            tied[chosen] = (scores == own).sum(1).cpu().numpy() + 1
            continue
        scores.scatter_(1, targets, own)
        higher[chosen] = (scores > own).sum(1).cpu().numpy()
        tied[chosen] = (scores == own).sum(1).cpu().numpy()
    return Ranks(higher=higher, tied=tied, candidates=candidates)


def metrics_from_ranks(ranks: Ranks, ks: Sequence[int] = (5, 10, 20)) -> dict[str, float | int]:
    """`hr_at_k`, `ndcg_at_k`, `mrr_at_k` for each k, `mean_rank` and `users`."""
    if any(k < 1 for k in ks):
        raise ConfigError(f"k must be at least 1, got {list(ks)}")
    results: dict[str, float | int] = {}
    for k in ks:
        places = np.arange(1, k + 1)
        # gain summed over places 1..r, so that a tie over places (h, h + t] costs one subtraction
        for name, gain in (
            ("hr", np.ones(k)),
            ("ndcg", 1 / np.log2(places + 1)),
            ("mrr", 1 / places),
        ):
            total = np.concatenate([[0.0], np.cumsum(gain)])
            first, last = np.minimum(ranks.higher, k), np.minimum(ranks.higher + ranks.tied, k)
            results[f"{name}_at_{k}"] = float(((total[last] - total[first]) / ranks.tied).mean())
    results["mean_rank"] = float((ranks.higher + (ranks.tied + 1) / 2).mean())
    results["users"] = len(ranks.higher)
    return results


def evaluate(
    scorer: Scorer,
    prefixes: Prefixes,
    positions: np.ndarray,
    ks: Sequence[int] = (5, 10, 20),
    **options: object,
) -> dict[str, float | int]:
    """`rank_targets` and `metrics_from_ranks` in one call."""
    return metrics_from_ranks(rank_targets(scorer, prefixes, positions, **options), ks)  # pyright: ignore
