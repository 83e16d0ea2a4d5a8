"""Membership tests: can one tell from a distilled set whether a picture was in the real one?

By loss: networks trained on the set lose less on pictures they know. By distance: members lie closer to some
synthetic picture. By shadows (LiRA, Carlini et al. 2022): many halves of the data are distilled, and a
picture's
confidence is compared with its own distribution over sets that did and did not contain it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import ConfigError
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.architectures import build_network
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.scores import stored_network
from fewer.learn.distillation.task import normalise
from fewer.learn.distillation.training import probabilities, train_networks
from fewer.learn.evaluate import binary_area_under_curve


@dataclass(frozen=True, slots=True)
class MembershipResult:
    """Area under the attack's ROC curve (0.5: it knows nothing) with a 95 % bootstrap interval."""

    auc: float
    low: float
    high: float
    true_positives_at_1_percent: float
    """Share of members found while 1 % of the others are accused."""
    members: int
    others: int


def membership_by_loss(
    distilled: DistilledSet,
    members: LabelledImages,
    others: LabelledImages,
    *,
    networks: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> MembershipResult:
    """The loss-threshold attack through networks trained on the set by its own recipe."""
    scores = [_confidence(distilled, one, networks, seed, device) for one in (members, others)]
    return attack(scores[0], scores[1], seed)


def membership_by_distance(
    synthetic: Float[Tensor, "m channels height width"],
    members: Float[Tensor, "n channels height width"],
    others: Float[Tensor, "k channels height width"],
    seed: int = 0,
) -> MembershipResult:
    """The nearest-picture attack."""
    scores = [
        -torch.cat(
            [torch.cdist(part.flatten(1), synthetic.flatten(1)).min(1).values for part in one.split(1024)]
        )
        for one in (members, others)
    ]
    return attack(scores[0].cpu(), scores[1].cpu(), seed)


def membership_by_shadows(
    pool: LabelledImages,
    distil: Callable[[LabelledImages, int], DistilledSet],
    *,
    splits: int = 8,
    networks: int = 2,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> MembershipResult:
    """The likelihood-ratio attack on the *method*: `distil(half, number)` is run on `splits` random halves of
    `pool`, each set in turn is attacked with the others as its shadows. Costs `splits` distillations.
    """
    if splits < 4:
        raise ConfigError(f"{splits} shadow splits; at least 4 are needed, 8 advised")
    inside, confidence = [], []
    for number in range(splits):
        # Complementary pairs, so that every picture is in exactly half of the sets.
        order = torch.randperm(len(pool), generator=seeded(seed, 811, number // 2))
        half = order[: len(pool) // 2] if number % 2 == 0 else order[len(pool) // 2 :]
        mask = torch.zeros(len(pool), dtype=torch.bool)
        mask[half] = True
        distilled = distil(pool.select(half.sort().values), number)
        inside.append(mask)
        confidence.append(_confidence(distilled, pool, networks, seed, device))
    ratios = shadow_ratios(torch.stack(confidence), torch.stack(inside))
    known = torch.stack(inside)
    return attack(ratios[known], ratios[~known], seed)


def shadow_ratios(
    confidence: Float[Tensor, "splits n"], inside: Bool[Tensor, "splits n"]
) -> Float[Tensor, "splits n"]:
    """log N(c | sets with the picture) - log N(c | sets without), leaving the attacked set out; one
    pooled variance.
    """
    ratios = torch.zeros_like(confidence)
    for target in range(len(confidence)):
        rest = torch.arange(len(confidence)) != target
        moments = []
        for mask in (inside[rest], ~inside[rest]):
            weight = mask.to(confidence.dtype)
            mean = (weight * confidence[rest]).sum(0) / weight.sum(0).clamp(min=1)
            spread = (weight * (confidence[rest] - mean).square()).sum() / weight.sum().clamp(min=1)
            moments.append((mean, spread.clamp(min=1e-6)))
        likelihoods = [
            -0.5 * ((confidence[target] - mean).square() / spread + torch.log(2 * pi * spread))
            for mean, spread in moments
        ]
        ratios[target] = likelihoods[0] - likelihoods[1]
    return ratios


def attack(
    members: Float[Tensor, " n"], others: Float[Tensor, " m"], seed: int = 0, draws: int = 200
) -> MembershipResult:
    """Figures of an attack that calls a picture a member when its score is high."""
    members, others = members.double(), others.double()
    values = []
    for draw in range(draws):
        generator = seeded(seed, 812, draw)
        own = members[torch.randint(len(members), (len(members),), generator=generator)]
        rest = others[torch.randint(len(others), (len(others),), generator=generator)]
        values.append(_area(own, rest))
    low, high = torch.quantile(
        torch.tensor(values, dtype=torch.float64), torch.tensor([0.025, 0.975]).double()
    ).tolist()
    threshold = torch.quantile(others, 0.99)
    found = float((members > threshold).double().mean())
    return MembershipResult(_area(members, others), low, high, found, len(members), len(others))


def _area(members: Tensor, others: Tensor) -> float:
    scores = torch.cat([members, others])
    positive = torch.zeros(len(scores), dtype=torch.bool)
    positive[: len(members)] = True
    return binary_area_under_curve(scores, positive)


def _confidence(
    distilled: DistilledSet, data: LabelledImages, networks: int, seed: int, device: torch.device | str
) -> Float[Tensor, " n"]:
    """log(p / (1 - p)) of the true class, averaged over networks: nearly Gaussian, as LiRA wants it."""
    sheet = distilled.datasheet
    network = build_network(
        stored_network(distilled), sheet.channels, sheet.image_size, len(sheet.class_names)
    )
    network = network.to(device)
    seeds = tuple(9000 + seed * 100 + k for k in range(networks))
    stacked = train_networks(
        network, distilled.normalised().to(device), distilled.targets().to(device), distilled.recipe(), seeds
    )
    images = normalise(data.as_float().to(device), distilled.mean, distilled.deviation)
    answers = probabilities(network, stacked, images).cpu().double()
    true = answers.gather(2, data.labels[None, :, None].expand(len(seeds), -1, 1))[..., 0]
    true = true.clamp(1e-12, 1 - 1e-12)
    return (true.log() - (1 - true).log()).mean(0).clamp(-log(1e12), log(1e12)).float()
