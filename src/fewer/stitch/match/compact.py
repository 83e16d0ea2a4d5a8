"""Weights of five levels, 27 of them in a 64-bit word: 2.4 bits a weight.

Every row of a large weight has a step, and its entries become one of -2, -1, 0, 1, 2 steps. A network keeps
its quality if it was trained through this rounding (`straight_through`, Bengio et al., arXiv 1308.3432).
Small tensors (norms, the first convolution, scales) stay as they are, in half precision.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

LEVELS = ".levels"
STEPS = ".steps"
_WORD = 27  # 5 ** 27 < 2 ** 63
_STEP = 0.84  # root mean squares: the least squared error for normal weights
_SMALLEST = 4096


def is_compact(weight: Tensor) -> bool:
    """Whether `pack` rounds this tensor: matrices and convolutions that are worth it."""
    return weight.dim() > 1 and weight.numel() >= _SMALLEST


def straight_through(weight: Tensor) -> Tensor:
    """The rounded weight, with the gradient of the weight itself."""
    codes, steps = _rounded(weight.detach())
    return weight + (_rows(codes, steps).view_as(weight) - weight).detach()


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is written to a file: words and steps of each large tensor, halves of the others."""
    packed: dict[str, Tensor] = {}
    places = 5 ** torch.arange(_WORD)
    for name, value in tensors.items():
        value = value.detach().cpu()
        if not is_compact(value):
            packed[name] = (value.half() if value.is_floating_point() else value).contiguous()
            continue
        codes, steps = _rounded(value)
        digits = codes.flatten().long() + 2
        digits = torch.cat([digits, digits.new_zeros(-len(digits) % _WORD)]).view(-1, _WORD)
        packed[name + LEVELS] = (digits * places).sum(dim=1)
        packed[name + STEPS] = steps.half()
    return packed


def unpack(packed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors again; `shapes` says how large each is. What does not fit stays under its packed name, for
    the caller to refuse.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in packed.items():
        name = key.removesuffix(LEVELS).removesuffix(STEPS)
        steps = packed.get(name + STEPS)
        fits = (
            name in shapes
            and steps is not None
            and steps.shape == shapes[name][:1]
            and value.dtype == torch.int64
            and value.shape == (-(-shapes[name].numel() // _WORD),)
        )
        if key.endswith(LEVELS) and fits and steps is not None:
            digits = value[:, None] // 5 ** torch.arange(_WORD) % 5 - 2
            codes = digits.flatten()[: shapes[name].numel()].view(len(steps), -1)
            tensors[name] = _rows(codes, steps.float()).view(shapes[name])
        elif not key.endswith(STEPS):
            tensors[key] = value.float() if value.is_floating_point() else value
    return tensors


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows = weight.float().flatten(1)
    # the steps are stored as halves: what is trained is what will be read
    steps = (_STEP * rows.square().mean(dim=1).sqrt()).clamp(min=1e-4).half().float()
    return (rows / steps[:, None]).round().clamp(-2, 2), steps


def _rows(codes: Tensor, steps: Tensor) -> Tensor:
    return codes * steps[:, None]
