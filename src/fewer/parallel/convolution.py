"""Convolutions on a band: border rows come from the neighbours, zeros only at the image's true border."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, silu

from fewer.parallel.group import Neighbours
from fewer.parallel.session import Session

Features = Float[Tensor, "batch channels height width"]


class ParallelConv2d(nn.Module):
    """Any zero-padded convolution with a kernel above 1, strides included; shares the original's tensors."""

    def __init__(self, original: nn.Conv2d, session: Session, layer: str) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias
        self.stride, self.padding, self.groups = original.stride, original.padding, original.groups
        self.kernel_size = original.kernel_size
        self.session, self.layer = session, layer

    def forward(self, features: Features) -> Float[Tensor, "batch out_channels out_height out_width"]:
        axis = self.session.axis
        depth, across = int(self.padding[axis - 2]), int(self.padding[3 - axis])
        rows = self.session.neighbour_rows(self.layer, features, depth)
        extended = extend(features, rows, depth, axis)
        padding = (0, across) if axis == 2 else (across, 0)
        return conv2d(extended, self.weight, self.bias, self.stride, padding, 1, self.groups)


class ParallelMixFFN(nn.Module):
    """Mix-FFN on a band. The rows travel before the 1×1 convolution, where they have a fifth of the channels.

    Trap: at the image's true border the zeros belong to the hidden features, after the 1×1 convolution and
    SiLU; zeros sent through them would not stay zero where there is a bias.
    """

    def __init__(self, original: nn.Module, session: Session, layer: str) -> None:
        super().__init__()
        self.conv_inverted = original.conv_inverted
        self.conv_depth = original.conv_depth
        self.conv_point = original.conv_point
        self.session, self.layer = session, layer

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens dim"]:
        axis = self.session.axis
        image = rearrange(tokens, "batch (h w) dim -> batch dim h w", h=grid[0], w=grid[1])
        before, after = self.session.neighbour_rows(self.layer, image, 1)
        parts = [part for part in (before, image, after) if part is not None]
        hidden = silu(self.conv_inverted(torch.cat(parts, dim=axis)))
        missing = (int(before is None), int(after is None))
        hidden = pad(hidden, (0, 0, *missing) if axis == 2 else missing)
        depth = self.conv_depth
        padding = (0, 1) if axis == 2 else (1, 0)
        value, gate = conv2d(hidden, depth.weight, depth.bias, 1, padding, 1, depth.groups).chunk(2, dim=1)
        mixed = self.conv_point(value * silu(gate))
        return rearrange(mixed, "batch dim h w -> batch (h w) dim")


def extend(
    features: Features, rows: Neighbours, depth: int, axis: int
) -> Float[Tensor, "batch channels h w"]:
    """The band with `depth` rows on both sides: the neighbours', or zeros at the image's border."""
    shape = list(features.shape)
    shape[axis] = depth
    before, after = (features.new_zeros(shape) if side is None else side.to(features.dtype) for side in rows)
    return torch.cat([before, features, after], dim=axis)
