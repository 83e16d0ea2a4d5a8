"""Networks in four bits a weight, to travel inside a package: written here, read by `generate.compact`.

Each weight becomes whole numbers times one scale for each of its rows, rounded with error feedback along the
correlations of its inputs (GPTQ), the scales as coarse as the row's importance allows (`shares`), the numbers
in Huffman codes. Nothing is smoothed and no branch is kept: those make *activations* of few bits bearable,
and the package is expanded to ordinary weights when it is opened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from fewer.core.errors import ConfigError, DataError
from fewer.generate.compact import deflated, is_large
from fewer.generate.transformer import SanaTransformer
from fewer.quantize.gptq import BLOCK, inverse_factor
from fewer.quantize.importance import Importance, importance
from fewer.quantize.shares import LARGEST, Rows, slope_for, whole_numbers

BITS, FEWEST, MOST = 4.1, 1.5, 8.0
"""Of a network's file for each of its parameters, scales and whatever stays in 16 bits included."""
_TRIES = 16


def package_transformer(
    network: SanaTransformer, calibrate: Callable[[], object], bits: float = BITS, seed: int = 0
) -> dict[str, Tensor]:
    """The tensors of a file that holds `network` in `bits` a parameter.

    `calibrate()` evaluates the network in any way, on prompts and levels of noise like those it will meet.
    Raises `DataError` for weights or inputs that are not finite, `ConfigError` for bits that cannot be.
    """
    return packed(network.state_dict(), importance(network, calibrate, seed), bits)


def packed(tensors: Mapping[str, Tensor], known: Importance, bits: float = BITS) -> dict[str, Tensor]:
    """Tensors in `bits` a number: small ones in bf16, large ones by what is known of them.

    Raises `DataError` for numbers that are not finite, `ConfigError` for bits that are too few.
    """
    if not FEWEST <= bits <= MOST:
        raise ConfigError(f"bits was {bits}; {FEWEST} to {MOST} a parameter are possible, {BITS} is usual")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"{name!r} has NaN or Inf; repair the model first")
    small = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if not is_large(tensor)
    }
    budget = bits * sum(tensor.numel() for tensor in tensors.values()) - _bits(small)
    weights = {name: _weight(name, tensor, known) for name, tensor in tensors.items() if name not in small}
    slope = slope_for({name: weight.rows for name, weight in weights.items()}, budget)
    for _ in range(_TRIES):  # error feedback takes a little more bits than plain rounding
        large: dict[str, Tensor] = {}
        for name, weight in weights.items():
            large |= _stored(name, weight, slope)
        over = _bits(large) - budget
        if over <= 0:
            return {name: tensor.cpu() for name, tensor in (small | large).items()}
        # steps twice as coarse save a bit of each number
        slope *= 2 ** (0.003 + 1.2 * over / sum(weight.rows.rows.numel() for weight in weights.values()))
    raise ConfigError(f"{bits} bits a parameter are too few for this network; {BITS} are usual")


@dataclass(frozen=True, slots=True)
class _Feedback:
    """What error feedback needs of a layer."""

    order: Tensor
    """Its columns, by falling energy of what they read."""
    upper: Float[Tensor, "columns columns"]
    """Upper factor of the inverse of the second moments, in that order."""
    kept: float
    """Share of plain rounding's squared output error that is left."""


@dataclass(frozen=True, slots=True)
class _Weight:
    rows: Rows
    shape: tuple[int, ...]
    feedback: _Feedback | None


def _weight(name: str, tensor: Tensor, known: Importance) -> _Weight:
    feedback = _feedback(name.removesuffix(".weight"), known)
    rows = tensor.detach().float().flatten(1)
    cost = known.noise[name].to(rows) / rows.shape[1] * (1.0 if feedback is None else feedback.kept)
    return _Weight(Rows(rows, cost), tuple(tensor.shape), feedback)


def _feedback(layer: str, known: Importance) -> _Feedback | None:
    moments = known.moments.get(layer)
    if moments is None:  # a depthwise convolution, a table
        return None
    moments = moments.clone()
    diagonal = moments.diagonal()
    diagonal += diagonal.mean() * len(moments) / known.rows_read[layer]  # few rows, little trust
    diagonal[diagonal == 0] = 1
    order = torch.argsort(diagonal, descending=True, stable=True)
    upper = inverse_factor(moments[order][:, order], layer)
    kept = upper.diagonal().square().reciprocal().mean() / diagonal.mean()
    return _Feedback(order, upper, float(kept))


def _stored(name: str, weight: _Weight, slope: float) -> dict[str, Tensor]:
    if weight.rows.too_fine(slope):
        return {name: weight.rows.rows.bfloat16().view(weight.shape)}
    steps = weight.rows.steps(slope)
    if weight.feedback is None:
        codes = whole_numbers(weight.rows.rows, steps[:, None])
    else:
        codes = _rounded(weight.rows.rows, steps, weight.feedback)
    return deflated(name, codes, steps.bfloat16(), weight.shape)


def _rounded(
    rows: Float[Tensor, "rows columns"], steps: Float[Tensor, "rows"], feedback: _Feedback
) -> Int8[Tensor, "rows columns"]:
    """Rounds column after column and spreads the error of each over those that follow (arXiv 2210.17323)."""
    work, upper = (rows / steps[:, None])[:, feedback.order], feedback.upper
    codes = torch.empty_like(work)
    for begin in range(0, work.shape[1], BLOCK):
        end = min(begin + BLOCK, work.shape[1])
        errors = torch.empty_like(work[:, begin:end])
        for column in range(begin, end):
            codes[:, column] = work[:, column].round().clamp_(-LARGEST, LARGEST)
            error = (work[:, column] - codes[:, column]) / upper[column, column]
            work[:, column:end] -= error[:, None] * upper[column, column:end]
            errors[:, column - begin] = error
        work[:, end:] -= errors @ upper[begin:end, end:]
    restored = torch.empty_like(codes, dtype=torch.int8)
    restored[:, feedback.order] = codes.to(torch.int8)
    return restored


def _bits(tensors: Mapping[str, Tensor]) -> float:
    return 8.0 * sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
