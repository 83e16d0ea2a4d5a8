"""3×3 convolutions, channels last, with what follows them, and the one that doubles a picture.

Nearest-neighbour doubling followed by a 3×3 convolution reads every small pixel several times with the same
weight: each of the four phases of the large picture is a 2×2 convolution of the small one whose weights are
sums of the nine. That is 4/9 of the products, and the doubled picture is never made.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels.norms import reference_rms_norm_add

Activation = Literal["none", "silu", "relu"]
EPSILON = 1e-5


def convolution(
    rows: Float[Tensor, "batch height width channels_in"],
    weight: Float[Tensor, "channels_out channels_in 3 3"],
    bias: Float[Tensor, " channels_out"] | None = None,
    activation: Activation = "none",
    norm: tuple[Float[Tensor, " channels_out"], Float[Tensor, " channels_out"]] | None = None,
    residual: Float[Tensor, "batch height width channels_out"] | None = None,
) -> Float[Tensor, "batch height width channels_out"]:
    """activation(conv + bias), or with `norm` (weight, bias): RMSNorm(conv + bias) + residual."""
    norm_weight, norm_bias = norm or (None, None)
    return torch.ops.fewer.convolution(rows, weight, bias, activation, norm_weight, norm_bias, residual)


def doubling_convolution(
    rows: Float[Tensor, "batch height width channels_in"],
    phases: Float[Tensor, "4 channels_out taps"],
    bias: Float[Tensor, " channels_out"] | None,
) -> Float[Tensor, "batch two_height two_width channels_out"]:
    """Nearest-neighbour doubling, 3×3 convolution, bias; `phases` are `doubling_phases` of its weight."""
    return torch.ops.fewer.doubling_convolution(rows, phases, bias)


def doubling_phases(
    weight: Float[Tensor, "channels_out channels_in 3 3"], shortcut: bool = False
) -> Float[Tensor, "4 channels_out taps"]:
    """2×2 weights (top, bottom) × (left, right) × channels_in of the phases (0, 0), (0, 1), (1, 0), (1, 1).

    Phase 0 of a direction sees pixels i - 1 and i with weights (w0, w1 + w2), phase 1 sees i and i + 1 with
    (w0 + w1, w2). `shortcut` adds the input's channels, repeated and shuffled into space (DC-AE §3.2), as
    ones in the weight of pixel i. Sums are made in fp32 and rounded once.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    channels, channels_in = weight.shape[:2]
    phases = []
    for down in (0, 1):
        a, b, c = wide.unbind(2)
        lines = torch.stack([a, b + c] if down == 0 else [a + b, c], 2)
        for across in (0, 1):
            a, b, c = lines.unbind(3)
            taps = torch.stack([a, b + c] if across == 0 else [a + b, c], 3)
            if shortcut:
                out = torch.arange(channels, device=weight.device)
                source = (4 * out + 2 * down + across) // (4 * channels // channels_in)
                taps[out, source, 1 - down, 1 - across] += 1
            phases.append(taps.permute(0, 2, 3, 1).flatten(1))
    return torch.stack(phases).to(weight.dtype)


def reference_convolution(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Plain torch: the oracle."""
    x = torch.nn.functional.conv2d(rows.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)
    if norm_weight is not None and norm_bias is not None:
        return reference_rms_norm_add(x, norm_weight, norm_bias, residual, "none", EPSILON).contiguous()
    x = {"none": lambda v: v, "silu": torch.nn.functional.silu, "relu": torch.relu}[activation](x)
    return x.contiguous()


def reference_doubling_convolution(rows: Tensor, phases: Tensor, bias: Tensor | None) -> Tensor:
    """Plain torch: the oracle."""
    batch, height, width, channels_in = rows.shape
    channels = phases.shape[1]
    out = rows.new_empty((batch, 2 * height, 2 * width, channels))
    x = rows.permute(0, 3, 1, 2)
    for number in range(4):
        down, across = number // 2, number % 2
        taps = phases[number].view(channels, 2, 2, channels_in).permute(0, 3, 1, 2)
        padded = torch.nn.functional.pad(x, (1 - across, across, 1 - down, down))
        out[:, down::2, across::2] = torch.nn.functional.conv2d(padded, taps, bias).permute(0, 2, 3, 1)
    return out


_convolution = torch.library.custom_op(
    "fewer::convolution", reference_convolution, mutates_args=(), device_types="cpu"
)
_doubling = torch.library.custom_op(
    "fewer::doubling_convolution", reference_doubling_convolution, mutates_args=(), device_types="cpu"
)


@_convolution.register_fake
def _(rows: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return rows.new_empty((*rows.shape[:3], weight.shape[0]))


@_doubling.register_fake
def _(rows: Tensor, phases: Tensor, *others: Any) -> Tensor:
    batch, height, width, _ = rows.shape
    return rows.new_empty((batch, 2 * height, 2 * width, phases.shape[1]))


@_convolution.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from fewer.kernels.triton.convolution import launch_convolution

    return launch_convolution(*arguments)


@_doubling.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from fewer.kernels.triton.convolution import launch_doubling_convolution

    return launch_doubling_convolution(*arguments)
