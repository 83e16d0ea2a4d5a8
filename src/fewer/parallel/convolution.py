"""Convolutions on a band: border rows come from the neighbours, zeros only at the image's true border."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, silu

from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.depthwise_row import depthwise_row
from fewer.parallel.group import Neighbours
from fewer.parallel.session import Session

Features = Float[Tensor, "batch channels height width"]

MOST_AT_ONCE = 2**22
"""A band of so few numbers is copied beside its neighbours' rows: that costs less than borders done anew."""


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
        rows = self.session.start_rows(self.layer, features, depth)
        if self.session.alone:
            return self._convolve(features, self.padding)
        padding = (0, across) if axis == 2 else (across, 0)
        plain = self.stride[axis - 2] == 1 and self.kernel_size[axis - 2] == 2 * depth + 1
        if not plain or features.shape[axis] < 2 * depth or features.numel() <= MOST_AT_ONCE:
            return self._convolve(extend(features, rows.wait(), depth, axis), padding)
        # The whole band is done while the rows travel, as if there were no neighbours; then its borders anew.
        out = self._convolve(features, self.padding)
        before, after = rows.wait()
        last = features.shape[axis] - 2 * depth
        if before is not None:
            strip = torch.cat([before.to(features.dtype), features.narrow(axis, 0, 2 * depth)], dim=axis)
            out.narrow(axis, 0, depth).copy_(self._convolve(strip, padding))
        if after is not None:
            strip = torch.cat([features.narrow(axis, last, 2 * depth), after.to(features.dtype)], dim=axis)
            out.narrow(axis, last + depth, depth).copy_(self._convolve(strip, padding))
        return out

    def _convolve(self, features: Features, padding: tuple) -> Tensor:
        return conv2d(features, self.weight, self.bias, self.stride, padding, 1, self.groups)


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
        before, after = self.session.start_rows(self.layer, image, 1).wait()
        parts = [part for part in (before, image, after) if part is not None]
        hidden = silu(self.conv_inverted(torch.cat(parts, dim=axis)))
        missing = (int(before is None), int(after is None))
        hidden = pad(hidden, (0, 0, *missing) if axis == 2 else missing)
        # Whatever the layer is (adapted, condition-aware), it pads by one row, which is cut off again.
        own = self.conv_depth(hidden).narrow(axis, 1, image.shape[axis])
        value, gate = own.chunk(2, dim=1)
        mixed = self.conv_point(value * silu(gate))
        return rearrange(mixed, "batch dim h w -> batch (h w) dim")


def depthwise_band(
    session: Session,
    layer: str,
    band: Float[Tensor, "batch height width dim"] | tuple[Tensor, Tensor],
    widen: Callable[[Tensor], Tensor],
    weight: Float[Tensor, "wide 3 3"],
    bias: Float[Tensor, " wide"],
) -> Float[Tensor, "batch height width mixed"]:
    """The gated depthwise convolution of the widened band, channels last, with the neighbours' rows.

    The band is convolved as if it were alone while the rows travel; then its border rows are done anew, in
    place. No copy of the band is made. What travels is `session.plan.border`: rows as they are (few bytes,
    and the receiver widens them, which costs another reading of the weights) or widened ones. A band of two
    tensors is their sum, which `widen` makes itself: it is called with the first of them.
    """
    axis, early = session.axis - 1, session.plan.border != "hidden"
    rows = session.start_rows(layer, _borders(band, axis), 1, axis) if early else None
    hidden = widen(band if isinstance(band, Tensor) else band[0]).contiguous()
    if rows is None:
        rows = session.start_rows(layer, hidden, 1, axis)
    mixed = depthwise_gated(hidden, weight, bias)
    sides = [None if part is None else widen(part) if early else part for part in rows.wait()]
    if axis == 2:
        weight = weight.transpose(1, 2)
    last = hidden.shape[axis] - 1

    def row(place: int) -> Tensor:
        if 0 <= place <= last:
            return hidden.select(axis, place)
        side = sides[0 if place < 0 else 1]
        return torch.zeros_like(hidden.select(axis, 0)) if side is None else side.select(axis, 0)

    for place in sorted({0} if last == 0 else {0, last}):
        if any(side is not None for side in (sides if last == 0 else sides[place > 0 :][:1])):
            around = (row(place - 1), row(place), row(place + 1))
            depthwise_row(*around, weight, bias, mixed.select(axis, place))
    return mixed


def _borders(band: Tensor | tuple[Tensor, Tensor], axis: int) -> Tensor:
    """First and last row of the band, or of a sum, which is made for these rows alone."""
    if isinstance(band, Tensor):
        return band
    first, last = (
        band[0].narrow(axis, place, 1) + band[1].narrow(axis, place, 1)
        for place in (0, band[0].shape[axis] - 1)
    )
    return torch.cat([first, last], dim=axis)


def extend(
    features: Features, rows: Neighbours, depth: int, axis: int
) -> Float[Tensor, "batch channels h w"]:
    """The band with `depth` rows on both sides: the neighbours', or zeros at the image's border."""
    shape = list(features.shape)
    shape[axis] = depth
    before, after = (features.new_zeros(shape) if side is None else side.to(features.dtype) for side in rows)
    return torch.cat([before, features, after], dim=axis)
