"""What displaced softmax attention keeps from step to step, before it is taken: keys and values of all bands.

A layer's share grows with the picture, unlike a linear attention's state: an SDXL at 3840 px keeps gigabytes.
"""

from collections.abc import Callable

import torch
from torch import nn

from fewer.parallel.memory import require_on_every_rank
from fewer.parallel.session import Session


def kept_bytes(
    widths: dict[str, int], tokens_at: Callable[[str], int], samples: int, itemsize: int, static: bool
) -> int:
    """Of all layers; `widths` are the numbers that each keeps for a token, `tokens_at` the picture's tokens.

    With `static` memories (in graphs) what a step brings stands beside what the step before has left. One
    layer's joined tensor, keys and values are there besides.
    """
    layers = [samples * tokens_at(name) * width * itemsize for name, width in widths.items()]
    return (2 if static else 1) * sum(layers) + 2 * max(layers, default=0)


def require_kept(
    session: Session,
    widths: dict[str, int],
    tokens_at: Callable[[str], int],
    samples: int,
    like: torch.Tensor,
) -> None:
    """Once a size, on every rank: raises `CapacityError` on all if one has no room for it.

    Does nothing where nothing is kept: in other modes, and on one device.
    """
    if session.plan.mode != "displaced" or session.alone:
        return
    place = (session.bands.lengths, session.axis, tuple(like.shape), like.dtype)
    if place in session.fitting:
        return
    needed = kept_bytes(widths, tokens_at, samples, like.element_size(), session.static)
    what = "for the keys and values that displaced attention keeps; mode=sync keeps none"
    require_on_every_rank(session.group, needed, like.device, what)
    session.fitting.add(place)


def kept_widths(model: nn.Module) -> dict[str, int]:
    """Layer: numbers a token, for every layer that says so (`kept_width`)."""
    return {
        name: int(module.kept_width)  # pyright: ignore[reportArgumentType]
        for name, module in model.named_modules()
        if getattr(module, "kept_width", 0)
    }


def unet_tokens(levels: int, height: int, width: int) -> Callable[[str], int]:
    """Tokens where a layer of a diffusers U-Net stands: each level below the first has a quarter."""

    def tokens_at(name: str) -> int:
        step = 2 ** unet_level(name, levels)
        return -(-height // step) * -(-width // step)

    return tokens_at


def unet_level(name: str, levels: int) -> int:
    """How often the picture has been halved where a layer of a diffusers U-Net with so many levels stands."""
    kind, _, rest = name.partition(".")
    if kind in ("down_blocks", "up_blocks"):
        index = int(rest.partition(".")[0])
        return index if kind == "down_blocks" else levels - 1 - index
    return levels - 1 if kind == "mid_block" else 0
