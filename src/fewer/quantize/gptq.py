"""GPTQ: rounding a weight column by column and pushing each column's error onto the columns not yet rounded.

Frantar et al. 2023 (arXiv 2210.17323), with scales fixed beforehand per original group ("static groups under
act-order"), columns in order of falling curvature, and damping that grows until the factorisation succeeds.
"""

import logging

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from fewer.core.errors import DataError
from fewer.quantize.formats import Format, Scales, code_values, nearest_codes, pad_to, weight_scales

logger = logging.getLogger(__name__)

BLOCK = 128
DAMPING, EXTRA_DAMPING, TRIES = 0.01, 0.001, 250


def gptq(
    weight: Float[Tensor, "out dim"],
    inputs: Float[Tensor, "rows dim"],
    form: Format,
    scale_dtype: torch.dtype = torch.bfloat16,
    name: str = "layer",
) -> tuple[Int8[Tensor, "out padded"], Scales]:
    """Codes and scales of `weight`, rounded for the second moments of `inputs` (what the rounded weight
    multiplies).

    Needs many more rows than columns: below twice the width the curvature fits noise and held-out error is
    worse than plain rounding, so a `DataError` names the layer instead.
    """
    rows, width = inputs.shape
    if rows < 2 * width:
        raise DataError(
            f"GPTQ of layer {name!r} has {rows} calibration rows for {width} channels; it needs at least "
            f"{2 * width}: calibrate on more data, raise the sample memory, or leave GPTQ off"
        )
    padded = pad_to(weight.float(), form.group)
    scales = weight_scales(padded, form, scale_dtype)
    per_column = scales.effective().repeat_interleave(form.group, dim=1)[:, :width]
    curvature = 2 / rows * inputs.float().mT @ inputs.float()
    work = weight.float().clone()
    dead = curvature.diagonal() == 0
    curvature.diagonal()[dead] = 1
    work[:, dead] = 0
    order = torch.argsort(curvature.diagonal(), descending=True, stable=True)
    inverse = inverse_factor(curvature[order][:, order], name)
    codes = _sweep(work[:, order], per_column[:, order], inverse, form)
    restored = torch.zeros(padded.shape, dtype=torch.int8, device=weight.device)
    restored[:, order] = codes
    return restored, scales


def inverse_factor(curvature: Float[Tensor, "dim dim"], name: str) -> Float[Tensor, "dim dim"]:
    """Upper Cholesky factor of the inverse of the damped curvature."""
    mean = curvature.diagonal().mean()
    identity = torch.eye(len(curvature), device=curvature.device)
    for attempt in range(TRIES):
        damped = curvature + (DAMPING + EXTRA_DAMPING * attempt) * mean * identity
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        if not failed:
            if attempt:
                logger.info("GPTQ of %s needed %d tries of damping", name, attempt + 1)
            return upper
    raise DataError(f"GPTQ of layer {name!r}: the second moments of its inputs cannot be factorised")


def _sweep(
    work: Float[Tensor, "out dim"],
    scale: Float[Tensor, "out dim"],
    inverse: Float[Tensor, "dim dim"],
    form: Format,
) -> Int8[Tensor, "out dim"]:
    """The column loop, in blocks so that far columns are updated by one matrix product per block."""
    width = work.shape[1]
    codes = torch.empty_like(work, dtype=torch.int8)
    for begin in range(0, width, BLOCK):
        end = min(begin + BLOCK, width)
        errors = torch.zeros(work.shape[0], end - begin, device=work.device)
        for column in range(begin, end):
            code = nearest_codes(work[:, column] / scale[:, column], form)
            codes[:, column] = code
            rounded = code_values(code, form) * scale[:, column]
            error = (work[:, column] - rounded) / inverse[column, column]
            work[:, column:end] -= error[:, None] * inverse[column, column:end]
            errors[:, column - begin] = error
        work[:, end:] -= errors @ inverse[begin:end, end:]
    return codes
