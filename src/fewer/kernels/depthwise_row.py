"""One row of Mix-FFN's depthwise convolution, where a picture is cut: its neighbour came from elsewhere."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels.depthwise import depthwise_gated


def depthwise_row(
    above: Float[Tensor, "batch width two_channels"],
    middle: Float[Tensor, "batch width two_channels"],
    below: Float[Tensor, "batch width two_channels"],
    weight: Float[Tensor, "two_channels 3 3"],
    bias: Float[Tensor, " two_channels"],
    out: Float[Tensor, "batch width channels"],
) -> None:
    """Writes value · SiLU(gate) of the row in the middle to `out`: as `depthwise_gated` of the three rows."""
    if out.is_cuda and out.dtype != torch.float64 and out.stride()[1:] == (out.shape[2], 1):
        from fewer.kernels.triton.depthwise_row import launch_depthwise_row

        launch_depthwise_row(above, middle, below, weight, bias, out)
        return
    out.copy_(depthwise_gated(torch.stack([above, middle, below], dim=1), weight, bias)[:, 1])
