"""Does a distilled set give away who was in the real one? Two attacks, and what they found.

Nearest neighbours: each synthetic picture's closest real one, by pixels, structure (SSIM) and features, is
compared with how close *unseen* real pictures come to the training set: closer than the closest 1 % is a
flag.
Membership: networks trained on the set are asked whether they know training pictures better than
held-out ones.
A clean audit is no proof of anonymity (Carlini et al., arXiv 2209.14987); only differential privacy is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.architectures import NetworkPlan, build_network
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.formation import decode, encode
from fewer.learn.distillation.membership import MembershipResult, membership_by_distance, membership_by_loss
from fewer.learn.distillation.scores import fit_to
from fewer.learn.distillation.stacked import embedding, fresh_parameters
from fewer.learn.distillation.task import normalise

PERCENTILE = 0.01
CANDIDATES = 8
"""Nearest pictures by pixels whose structure is compared."""
FEATURE_WIDTH = 32


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One synthetic picture and the real one it comes closest to."""

    row: int
    label: str
    nearest: int
    """Row of the real training set."""
    pixel_distance: float
    """Root mean square over pixels in [0, 1]."""
    similarity: float
    """SSIM, the highest among the nearest by pixels."""
    feature_distance: float
    flagged: bool


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was found; `thresholds` are the closest 1 % of held-out pictures."""

    neighbours: tuple[Neighbour, ...]
    thresholds: dict[str, float]
    flagged: int
    flagged_share: float
    by_loss: MembershipResult
    by_distance: MembershipResult
    duplicates: int
    """Held-out pictures that are also in the training set (left out of both tests)."""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def summary(self) -> dict[str, object]:
        """Short enough for the datasheet."""
        return {
            "pictures": len(self.neighbours),
            "flagged": self.flagged,
            "flagged_share": round(self.flagged_share, 4),
            "membership_auc_by_loss": round(self.by_loss.auc, 4),
            "membership_auc_by_distance": round(self.by_distance.auc, 4),
            "membership_interval_by_loss": [round(self.by_loss.low, 4), round(self.by_loss.high, 4)],
            "closest_pixel_distance": round(min(n.pixel_distance for n in self.neighbours), 5),
        }


def audit(
    distilled: DistilledSet,
    train: LabelledImages,
    held_out: LabelledImages,
    *,
    members: Int64[Tensor, " m"] | None = None,
    networks: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AuditReport:
    """`train` is what was distilled, `held_out` comes from the same source and was not. `members`: rows of
    `train` for the membership tests (default: as many random ones as there are held out). Raises `DataError`.
    """
    train, held_out = fit_to(distilled, train), fit_to(distilled, held_out)
    if len(held_out) < 20:
        raise DataError(f"{len(held_out)} held-out pictures; an audit needs at least 20 to compare with")
    factor = distilled.datasheet.factor
    synthetic = decode(distilled.pixels().float() / 255.0, factor).to(device)
    real, unseen = (_seen_through(one.as_float().to(device), factor) for one in (train, held_out))
    copies = nearest(unseen, real)[0] == 0
    unseen, kept = unseen[~copies], torch.nonzero(~copies.cpu()).flatten()
    if len(unseen) < 20:
        raise DataError("nearly all held-out pictures are copies of training pictures; hold out others")
    ours, reference = (_closeness(one, real, distilled, seed) for one in (synthetic, unseen))
    low = {"pixels": _percentile(reference[0], PERCENTILE), "features": _percentile(reference[3], PERCENTILE)}
    high = {"similarity": _percentile(reference[2], 1 - PERCENTILE)}
    flags = (ours[0] < low["pixels"]) | (ours[2] > high["similarity"]) | (ours[3] < low["features"])
    neighbours = _neighbours(distilled, ours, flags)
    if members is None:
        members = torch.randperm(len(train), generator=seeded(seed, 801))[: max(200, len(kept))]
    own, others = train.select(members), held_out.select(kept)
    return AuditReport(
        neighbours,
        {**low, **high},
        int(flags.sum()),
        float(flags.float().mean()),
        membership_by_loss(distilled, own, others, networks=networks, seed=seed, device=device),
        membership_by_distance(synthetic, real[members.to(real.device)], unseen, seed=seed),
        int(copies.sum()),
    )


def nearest(
    queries: Float[Tensor, "m ..."], keys: Float[Tensor, "n ..."], count: int = 1
) -> tuple[Float[Tensor, "m ..."], Int64[Tensor, "m ..."]]:
    """Root-mean-square distance to the nearest keys and their rows: (m,) for count 1, else (m, count).

    Distances that float32 cannot tell from 0 are computed again exactly, so that a copy has distance 0.
    """
    flat_queries, flat_keys = queries.flatten(1), keys.flatten(1)
    count = min(count, len(keys))
    distances, rows = [], []
    for part in flat_queries.split(512):
        found = torch.cdist(part, flat_keys).topk(count, largest=False)
        exact = (part[:, None] - flat_keys[found.indices]).square().mean(2).sqrt()
        order = exact.argsort(dim=1, stable=True)
        distances.append(exact.gather(1, order))
        rows.append(found.indices.gather(1, order))
    both = torch.cat(distances), torch.cat(rows)
    return (both[0][:, 0], both[1][:, 0]) if count == 1 else both


def similarity(
    ours: Float[Tensor, "n channels height width"], theirs: Float[Tensor, "n channels height width"]
) -> Float[Tensor, " n"]:
    """SSIM (Wang et al. 2004) of picture pairs in [0, 1]: Gaussian window of 11 pixels, deviation 1.5."""
    channels, height, width = ours.shape[1:]
    size = min(11, height if height % 2 else height - 1, width if width % 2 else width - 1)
    offsets = torch.arange(size, dtype=ours.dtype, device=ours.device) - size // 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = (weights[:, None] * weights[None, :]) / weights.sum().square()
    kernel = window.expand(channels, 1, size, size)

    def blur(images: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(images, kernel, groups=channels)

    a, b = blur(ours), blur(theirs)
    variances = blur(ours.square()) - a.square(), blur(theirs.square()) - b.square()
    covariance = blur(ours * theirs) - a * b
    c1, c2 = 0.01**2, 0.03**2
    score = ((2 * a * b + c1) * (2 * covariance + c2)) / (
        (a.square() + b.square() + c1) * (variances[0] + variances[1] + c2)
    )
    return score.mean((1, 2, 3))


def _closeness(
    pictures: Tensor, real: Tensor, distilled: DistilledSet, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(pixel distance, row of the nearest, highest SSIM, feature distance) of each picture to the real
    set.
    """
    distances, rows = nearest(pictures, real, CANDIDATES)
    scores = torch.stack([similarity(pictures, real[rows[:, k]]) for k in range(rows.shape[1])], 1)
    features = [_features(one, distilled, seed) for one in (pictures, real)]
    return distances[:, 0], rows[:, 0], scores.max(1).values, nearest(features[0], features[1])[0]


def _features(pictures: Tensor, distilled: DistilledSet, seed: int) -> Float[Tensor, "n dim"]:
    """Embeddings of a random ConvNet: blind to small shifts, and it has seen nobody."""
    sheet = distilled.datasheet
    plan = NetworkPlan(width=FEATURE_WIDTH)
    network = build_network(plan, sheet.channels, sheet.image_size, len(sheet.class_names)).to(
        pictures.device
    )
    parameters = fresh_parameters(network, seeded(seed, 802), pictures.device)
    inputs = normalise(pictures, distilled.mean, distilled.deviation)
    with torch.no_grad():
        return torch.cat([embedding(network, parameters, part) for part in inputs.split(1024)])


def _seen_through(images: Tensor, factor: int) -> Tensor:
    """Real pictures at the resolution that a multi-formation set can hold."""
    if factor == 1:
        return images
    padding = -len(images) % factor**2
    filled = torch.cat([images, images[:1].expand(padding, -1, -1, -1)])
    return decode(encode(filled, factor), factor)[: len(images)]


def _percentile(values: Tensor, share: float) -> float:
    return float(torch.quantile(values.double().cpu(), share))


def _neighbours(
    distilled: DistilledSet, ours: tuple[Tensor, Tensor, Tensor, Tensor], flags: Bool[Tensor, " m"]
) -> tuple[Neighbour, ...]:
    sheet = distilled.datasheet
    labels = distilled.labels.repeat_interleave(sheet.factor**2).tolist()
    columns = [column.tolist() for column in (*ours, flags)]
    return tuple(
        Neighbour(row, sheet.class_names[labels[row]], nearest_row, distance, structure, feature, flagged)
        for row, (distance, nearest_row, structure, feature, flagged) in enumerate(zip(*columns, strict=True))
    )
