"""Which layers lost what: kept share, change since the first mask, and how far the domains disagree about the
kept and about the dropped weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from fewer.learn.domains.bases import DomainBatch, domain_losses


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One masked layer. Spread: deviation between the domains' mean task gradients, over the layer's mean; a
    mask that leaves out variant weights has a larger spread among the dropped than among the kept."""

    name: str
    weights: int
    kept: int
    changed: float
    """Share of the weights whose state differs from the first mask."""
    spread_kept: float | None
    spread_dropped: float | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def layer_reports(
    network: nn.Module,
    names: Sequence[str],
    masks: Mapping[str, Tensor],
    first_masks: Mapping[str, Tensor],
    batches: Sequence[DomainBatch],
) -> list[LayerReport]:
    """A line for every masked layer; empty without masks."""
    if not masks:
        return []
    spreads = gradient_spread(network, names, batches)
    reports = []
    for name in names:
        mask, spread = masks[name], spreads[name]
        relative = spread / spread.mean().clamp(min=1e-30)
        changed = (mask != first_masks[name]).float().mean() if name in first_masks else torch.zeros(())
        reports.append(
            LayerReport(
                name,
                mask.numel(),
                int(mask.sum()),
                float(changed),
                float(relative[mask].mean()) if bool(mask.any()) else None,
                float(relative[~mask].mean()) if bool((~mask).any()) else None,
            )
        )
    return reports


def gradient_spread(
    network: nn.Module, names: Sequence[str], batches: Sequence[DomainBatch]
) -> dict[str, Tensor]:
    """Deviation over domains of the task gradient, averaged over `batches`, for every weight (masked too)."""
    parameters = dict(network.named_parameters())
    weights = [parameters[name] for name in names]
    envs = len(batches[0].sizes)
    sums = [[torch.zeros_like(weight) for weight in weights] for _ in range(envs)]
    for batch in batches:
        losses = domain_losses(network(batch.images), batch)
        for env in range(envs):
            gradients = torch.autograd.grad(losses[env], weights, retain_graph=env < envs - 1)
            for total, gradient in zip(sums[env], gradients, strict=True):
                total += gradient / len(batches)
    return {
        name: torch.stack([sums[env][k] for env in range(envs)]).std(0, correction=0)
        for k, name in enumerate(names)
    }
