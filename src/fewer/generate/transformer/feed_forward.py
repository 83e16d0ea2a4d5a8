"""Mix-FFN: the part of a block that mixes neighbouring tokens and so knows where they are."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from fewer.kernels.gated_depthwise import gated_depthwise


class MixFFN(nn.Module):
    """1x1 convolution, 3x3 depthwise convolution, gate, 1x1 convolution (arXiv 2410.10629, section 2.2).

    The zero padding of the depthwise convolution is the only source of position in most Sana models.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(ratio * width)
        self.conv_inverted = nn.Conv2d(width, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, width, 1, bias=False)
        self.fused = False
        """Training on a GPU: 1x1 convolutions as products, cuBLAS's own work. The same result."""
        self.own_middle = False
        """With `fused`: SiLU, depthwise convolution and gate in one kernel, their gradients in another."""

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens dim"]:
        """`tokens` lie row by row on a grid of (rows, columns)."""
        if self.fused or self._drawing_on_a_cpu(tokens):
            wide = linear(tokens, self.conv_inverted.weight.flatten(1), self.conv_inverted.bias)
            if self.fused and self.own_middle:
                image = rearrange(wide, "batch (h w) dim -> batch h w dim", h=grid[0])
                mixed = gated_depthwise(image, self.conv_depth.weight, self.conv_depth.bias, True)  # type: ignore[arg-type]
                return linear(mixed.flatten(1, 2), self.conv_point.weight.flatten(1))
            image = rearrange(
                silu(wide), "batch (h w) dim -> batch dim h w", h=grid[0]
            )  # a view, channels last
            value, gate = rearrange(self.conv_depth(image), "batch dim h w -> batch (h w) dim").chunk(
                2, dim=2
            )
            return linear(value * silu(gate), self.conv_point.weight.flatten(1))
        image = rearrange(tokens, "batch (h w) dim -> batch dim h w", h=grid[0], w=grid[1])
        hidden = self.conv_depth(silu(self.conv_inverted(image)))
        value, gate = hidden.chunk(2, dim=1)
        mixed = self.conv_point(value * silu(gate))
        return rearrange(mixed, "batch dim h w -> batch (h w) dim")

    def _drawing_on_a_cpu(self, tokens: Tensor) -> bool:
        """There torch's 1x1 convolutions take longer than products do, and nothing has to be transposed.

        Only of plain layers to which nothing is hooked, and without gradients: training keeps its bits.
        """
        layers = (self.conv_inverted, self.conv_point)
        plain = all(type(layer) is nn.Conv2d for layer in layers)
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
        return plain and not hooked and tokens.device.type == "cpu" and not torch.is_grad_enabled()
