"""Masks over a network's weights, applied from outside: True keeps a weight, False holds it at exactly zero.

EVIL (arXiv 2310.16391) calls the dropped weights variant and the kept ones invariant. Everything here is
algebra on weights and scores; where the scores come from is `gradients.py`, when they are used `training.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.core.modules import find_modules

Masks = dict[str, Tensor]
"""Parameter name -> boolean tensor of the parameter's shape."""

GUARD = 0.9
"""At most this share of one output channel's kept inputs is dropped in one update (extended mode)."""


def maskable_weights(
    network: nn.Module, *, head: str = "classifier", stem_dense: bool = True, norms: bool = False
) -> tuple[str, ...]:
    """Names of the weights that may be masked, in definition order: Conv2d and Linear outside `head`.

    Never biases, never normalisation (`norms=True` adds GroupNorm and LayerNorm, as the released code does
    by accident). The first one, the stem, stays dense where there is more than one. Raises `ConfigError`
    when nothing is left.
    """
    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
    if norms:
        kinds += (nn.GroupNorm, nn.LayerNorm)
    found = [
        f"{name}.weight" if name else "weight"
        for name, module in find_modules(network, lambda _, module: isinstance(module, kinds))
        if name.split(".")[0] != head and getattr(module, "weight", None) is not None
    ]
    if stem_dense and len(found) > 1:
        found = found[1:]
    if not found:
        raise ConfigError(f"the network has no convolution or linear layer outside {head!r} to mask")
    return tuple(found)


def kept_count(weights: int, density: float) -> int:
    """How many of `weights` a layer keeps; at least one."""
    return max(1, round(density * weights))


def preference(score: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"]) -> Int64[Tensor, " n"]:
    """Flat positions from the largest score to the smallest; ties go to the larger |w|, then to the lower
    position, so that runs repeat exactly (zero gradients are common in dead channels)."""
    by_weight = weight.detach().abs().flatten().sort(descending=True, stable=True).indices
    order = score.flatten()[by_weight].sort(descending=True, stable=True).indices
    return by_weight[order]


def top_mask(
    score: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"], count: int
) -> Bool[Tensor, "*shape"]:
    """Keeps the `count` weights of largest score."""
    return best(score, weight, torch.ones_like(weight, dtype=torch.bool), count)


def best(
    score: Float[Tensor, "*shape"],
    weight: Float[Tensor, "*shape"],
    among: Bool[Tensor, "*shape"],
    count: int,
) -> Bool[Tensor, "*shape"]:
    """The `count` positions of `among` that `preference` puts first. Only ties are sorted: the mask of a
    large layer is found in a tenth of the time that four sorts of all its weights take."""
    picked = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    positions = among.flatten().nonzero().flatten()
    values = score.flatten()[positions]
    if 0 < count < len(positions):
        place = len(positions) - count
        # On a GPU `kthvalue` walks through a layer with a single block of threads; sorting is quicker there.
        cut = values.sort().values[place] if values.is_cuda else values.kthvalue(place + 1).values
        above = values > cut
        tied, left = positions[values == cut], count - int(above.sum())
        if left < len(tied):
            tied = tied[weight.detach().flatten()[tied].abs().sort(descending=True, stable=True).indices]
        positions = torch.cat([positions[above], tied[:left]])
    if count > 0:
        picked[positions] = True
    return picked.view(weight.shape)


def exchange_fraction(step: int, alpha: float, end: int) -> float:
    """zeta(t) = alpha / 2 * (1 + cos(pi t / T_end)): the share of kept weights exchanged at masked step t."""
    return alpha / 2 * (1 + math.cos(math.pi * step / end))


def exchange(
    mask: Bool[Tensor, "*shape"],
    weight: Float[Tensor, "*shape"],
    keep_score: Float[Tensor, "*shape"],
    grow_score: Float[Tensor, "*shape"],
    fraction: float,
    *,
    guard: bool = False,
) -> Bool[Tensor, "*shape"]:
    """The next mask of one layer: the p = floor(fraction * kept) kept weights of lowest `keep_score` leave,
    and of all weights outside the rest (those that just left included) the p of highest `grow_score` enter.

    EVIL: keep_score = |w|, grow_score = -|dL_domain/dw|. RigL: grow_score = |dL_task/dw|. With `guard` no
    output channel loses more than 90 % of its kept inputs, even if fewer than p are then exchanged.
    """
    leaving = math.floor(fraction * int(mask.sum()))
    survivors = best(keep_score, weight, mask, int(mask.sum()) - leaving)
    if guard:
        survivors = _guarded(survivors, keep_score, weight, mask, leaving)
        leaving = int(mask.sum()) - int(survivors.sum())
    return survivors | best(grow_score, weight, ~survivors, leaving)


def _guarded(
    survivors: Bool[Tensor, " out *inputs"],
    keep_score: Float[Tensor, " out *inputs"],
    weight: Float[Tensor, " out *inputs"],
    mask: Bool[Tensor, " out *inputs"],
    leaving: int,
) -> Bool[Tensor, " out *inputs"]:
    """`survivors`, or, where an output channel would lose more than its allowance, those that stay when the
    weights of lowest score leave one after the other, each as long as its channel can spare it."""
    kept = mask.flatten(1).sum(1)
    allowance = (GUARD * kept).floor()
    if bool((kept - survivors.flatten(1).sum(1) <= allowance).all()):
        return survivors
    order = preference(keep_score, weight)
    first = order[mask.flatten()[order]].flip(0)
    channel = first // max(1, mask[0].numel())
    grouped = channel.sort(stable=True).indices
    starts = kept.cumsum(0) - kept
    rank = torch.empty_like(channel)
    rank[grouped] = torch.arange(len(channel), device=channel.device) - starts[channel[grouped]]
    remaining = mask.flatten().clone()
    remaining[first[rank < allowance[channel]][:leaving]] = False
    return remaining.view(mask.shape)


@torch.no_grad()
def apply_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Sets the masked weights to zero, in place, and returns the network. Raises `ConfigError` for a mask
    that fits no weight."""
    parameters = dict(network.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise ConfigError(f"the mask {name!r} of shape {tuple(mask.shape)} fits no weight of the network")
        parameters[name].masked_fill_(~mask, 0.0)
    return network


@torch.no_grad()
def clear_masked_state(
    optimizer: torch.optim.Optimizer, network: nn.Module, masks: Mapping[str, Tensor]
) -> None:
    """Zeroes what an optimizer remembers of masked weights (momentum of SGD, both moments of Adam).

    With it, a masked weight whose gradient is zero is never moved, so zeros stay zeros between updates.
    """
    parameters = dict(network.named_parameters())
    for name, mask in masks.items():
        for value in optimizer.state.get(parameters[name], {}).values():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                value.masked_fill_(~mask, 0.0)


def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """Everything that an optimizer remembers to zero, in place: as one that is new."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def density_of(masks: Mapping[str, Tensor]) -> float:
    """Kept share over all masked layers."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 1.0


def pack_masks(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One bit a weight: uint8 tensors, most significant bit first, each beside its shape `<name>.shape`."""
    import numpy as np

    packed: dict[str, Tensor] = {}
    for name, mask in masks.items():
        packed[name] = torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))
        packed[f"{name}.shape"] = torch.tensor(mask.shape, dtype=torch.int64)
    return packed


def unpack_masks(packed: Mapping[str, Tensor]) -> Masks:
    """Inverse of `pack_masks`. Raises `ConfigError` where bits and shape disagree."""
    import numpy as np

    masks: Masks = {}
    for name, bits in packed.items():
        if name.endswith(".shape"):
            continue
        shape = packed[f"{name}.shape"].tolist() if f"{name}.shape" in packed else [-1]
        count = math.prod(shape)
        if min(shape, default=0) < 0 or (count + 7) // 8 != bits.numel():
            raise ConfigError(f"mask {name!r}: {bits.numel()} bytes do not hold the shape {shape}")
        flat = np.unpackbits(bits.numpy(), count=count).astype(bool)
        masks[name] = torch.from_numpy(flat).view(shape)
    return masks
