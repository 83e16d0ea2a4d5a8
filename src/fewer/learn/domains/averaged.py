"""Averaged weights: a second network that follows the trained one, and what batch norm needs for it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(smooth: nn.Module, network: nn.Module, share: float) -> None:
    """The averaged weights keep `share` of what they are and take the rest from the present ones; statistics
    are the present ones until `measure_statistics`."""
    torch._foreach_lerp_(list(smooth.parameters()), list(network.parameters()), 1 - share)
    for own, given in zip(smooth.buffers(), network.buffers(), strict=True):
        own.copy_(given)


@torch.no_grad()
def measure_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Running statistics of batch norms become those of `batches` under the weights as they are (as in SWAD,
    arXiv 2102.08604): a trained network's statistics do not fit the average of its weights. Leaves the
    network in evaluation; does nothing without batch norms."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts the same
        norm.train()
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
