"""What the shared weights say about every length: validation NDCG@10, and which lengths it cannot tell apart.

All lengths answer the same questions, so differences are judged by their spread from user to user (paired): a
length is out when it is worse than the best by more than two standard errors.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.recommend.automlp import AutoMLPNetwork
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.training.encoders import item_table

EPOCHS_AVERAGED = 3  # one epoch's figures wander by as much as the lengths differ
DOUBT = 2.0  # standard errors


@dataclass(slots=True)
class Evidence:
    """Every length's figure for every user, over the last epochs."""

    prefixes: Prefixes
    positions: np.ndarray
    items: int
    recent: list[Float[Tensor, "candidates users"]] = field(default_factory=list)
    """NDCG@10, the oldest epoch first."""

    @torch.no_grad()
    def add(self, network: AutoMLPNetwork) -> None:
        """Asks all lengths all questions; the oldest epoch beyond `EPOCHS_AVERAGED` is forgotten."""
        gains = torch.zeros(len(network.candidates), len(self.positions))
        network.eval()
        table = item_table(network, self.items)
        for rows, batch in self.prefixes.in_order(self.positions, 512):
            targets = batch.targets[:, None].to(table.device)
            for candidate, encoded in enumerate(network.encode_each(batch.histories.to(table.device))):
                scores = encoded @ table.T
                scores[:, 0] = float("-inf")
                own = scores.gather(1, targets)
                # a tie counts as half, as in the mean over random orders
                place = (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
                gains[candidate, rows] = torch.where(place < 10, 1 / torch.log2(place + 2.0), 0.0).cpu()
        self.recent = [*self.recent, gains][-EPOCHS_AVERAGED:]

    def figures(self) -> list[float]:
        """Mean NDCG@10 of every length."""
        return self._mean().mean(1).tolist()

    def rivals(self, likely: int, prices: list[float]) -> list[int]:
        """Candidate lengths' indices, best first: `likely`, and all that are not clearly worse than the best
        after each has paid its price."""
        mean = self._mean()
        paid = mean.mean(1) - torch.tensor(prices)
        best = int(paid.argmax())
        behind = paid[best] - paid
        users = mean.shape[1]
        errors = (mean[best] - mean).std(1, correction=0) / users**0.5
        kept = [j for j in range(len(mean)) if j in (likely, best) or behind[j] <= DOUBT * errors[j]]
        return sorted(kept, key=lambda j: (float(behind[j]), j))

    def _mean(self) -> Float[Tensor, "candidates users"]:
        return torch.stack(self.recent).mean(0)
