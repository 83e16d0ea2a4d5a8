import pytest
import torch
from torch.nn import functional

from fewer.kernels.convolution import convolution, doubling_convolution, doubling_phases
from fewer.kernels.norms import rms_norm_add
from fewer.kernels.resample import upsample_add

# cuDNN multiplies fp32 in TF32 unless told otherwise.
TOLERANCE = {torch.float32: 2e-3 if torch.cuda.is_available() else 1e-4, torch.bfloat16: 2e-2}


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((found.float() - wanted.float()).norm() <= TOLERANCE[dtype] * wanted.float().norm())


def plain(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    wide = None if bias is None else bias.float()
    return functional.conv2d(rows.float().permute(0, 3, 1, 2), weight.float(), wide, padding=1).permute(
        0, 2, 3, 1
    )


def sizes(device: torch.device) -> list[tuple[int, int, int, int, int]]:
    """(batch, height, width, in, out); on a GPU also those that its kernels for large tiles take."""
    small = [(1, 1, 1, 3, 4), (2, 5, 9, 8, 4)]
    return [*small, (2, 5, 19, 64, 128), (1, 33, 18, 128, 256)] if device.type == "cuda" else small


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_or_norm_and_sum_follow(dtype: torch.dtype, draw, device: torch.device) -> None:
    for batch, height, width, inputs, outputs in sizes(device):
        rows = draw(batch, height, width, inputs, dtype=dtype)
        weight = draw(outputs, inputs, 3, 3, dtype=dtype, scale=(9 * inputs) ** -0.5)
        bias, gain = draw(outputs, dtype=dtype), draw(outputs, dtype=dtype)
        residual = draw(batch, height, width, outputs, dtype=dtype)
        wanted = plain(rows, weight, bias)
        for activation, act in (("none", lambda v: v), ("silu", functional.silu), ("relu", torch.relu)):
            assert close(convolution(rows, weight, bias, activation), act(wanted), dtype), activation
        normed = rms_norm_add(plain(rows, weight, None), gain.float(), bias.float(), residual.float())
        assert close(convolution(rows, weight, norm=(gain, bias), residual=residual), normed, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shortcut", [False, True])
def test_doubling_is_interpolation_and_convolution(
    dtype: torch.dtype, shortcut: bool, draw, device: torch.device
) -> None:
    for batch, height, width, inputs, outputs in [*sizes(device), (1, 3, 2, 4, 4)]:
        if shortcut and 4 * outputs % inputs:
            continue
        rows = draw(batch, height, width, inputs, dtype=dtype)
        weight = draw(outputs, inputs, 3, 3, dtype=dtype, scale=(9 * inputs) ** -0.5)
        bias = draw(outputs, dtype=dtype)
        large = functional.interpolate(rows.float().permute(0, 3, 1, 2), scale_factor=2).permute(0, 2, 3, 1)
        wanted = plain(large, weight, bias)
        wanted = upsample_add(rows.float(), wanted.contiguous(), False) if shortcut else wanted
        assert close(doubling_convolution(rows, doubling_phases(weight, shortcut), bias), wanted, dtype)


def test_operators_are_registered_properly(draw) -> None:
    rows, weight, bias, residual = draw(1, 3, 2, 4), draw(4, 4, 3, 3), draw(4), draw(1, 3, 2, 4)
    torch.library.opcheck(torch.ops.fewer.convolution, (rows, weight, bias, "silu", None, None, None))
    torch.library.opcheck(torch.ops.fewer.convolution, (rows, weight, None, "none", bias, draw(4), residual))
    torch.library.opcheck(torch.ops.fewer.doubling_convolution, (rows, doubling_phases(weight), bias))
