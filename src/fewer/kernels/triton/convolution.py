"""Which kernel convolves: the one for Hopper where it fits, else cuDNN and a pass of its own for the rest."""

import torch
from torch import Tensor

from fewer.kernels.convolution import reference_doubling_convolution
from fewer.kernels.triton.hopper import has_hopper
from fewer.kernels.triton.norms import launch_rms_norm_add

# The norm is part of the kernel where a tile of this many channels holds them all.
WIDEST_NORM = 256


def launch_convolution(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    eps: float = 1e-5,
) -> Tensor:
    """As `reference_convolution`."""
    channels = weight.shape[0]
    fits = _fits(rows, channels)
    inside = norm_weight is not None and channels <= WIDEST_NORM and bias is None
    if fits:
        from fewer.kernels.triton.hopper_convolution import launch_convolution as launch

        y = rows.new_empty((*rows.shape[:3], channels))
        taps = weight.permute(0, 2, 3, 1).reshape(channels, -1).contiguous()
        if inside:
            other = None if residual is None else residual.contiguous()
            launch(rows.contiguous(), taps, y, norm_bias, "none", norm_weight, other, eps=eps)
            return y
        launch(rows.contiguous(), taps, y, bias, "none" if norm_weight is not None else activation)
    else:
        image = torch.nn.functional.conv2d(rows.permute(0, 3, 1, 2), weight, bias, padding=1)
        y = image.permute(0, 2, 3, 1).contiguous()
        if norm_weight is None and activation != "none":
            y = (torch.nn.functional.silu if activation == "silu" else torch.relu)(y)
    if norm_weight is not None and norm_bias is not None:
        y = launch_rms_norm_add(y, norm_weight, norm_bias, residual, "none", eps)
    return y


def launch_doubling_convolution(rows: Tensor, phases: Tensor, bias: Tensor | None) -> Tensor:
    """As `reference_doubling_convolution`."""
    if not _fits(rows, phases.shape[1]):
        return reference_doubling_convolution(rows, phases, bias)
    from fewer.kernels.triton.hopper_convolution import launch_convolution as launch

    batch, height, width, _ = rows.shape
    rows, out = rows.contiguous(), rows.new_empty((batch, 2 * height, 2 * width, phases.shape[1]))
    for number, taps in enumerate(phases):
        down, across = divmod(number, 2)
        launch(rows, taps, out[:, down::2, across::2], bias, phase=(down, across))
    return out


def _fits(rows: Tensor, channels: int) -> bool:
    """Whether whole chunks of channels can be copied, and whole tiles of channels come out."""
    known = rows.dtype == torch.bfloat16 and has_hopper(rows.device) and rows.numel() > 0
    return known and rows.shape[3] % 64 == 0 and channels % 128 == 0
