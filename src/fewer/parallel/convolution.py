"""Convolutions on a band: border rows come from the neighbours, zeros only at the image's true border."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, silu

from fewer.parallel.group import Neighbours, Pending
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
        rows = self.session.start_rows(self.layer, features, depth)
        padding = (0, across) if axis == 2 else (across, 0)
        plain = self.stride[axis - 2] == 1 and self.kernel_size[axis - 2] == 2 * depth + 1
        if not plain or features.shape[axis] < 2 * depth:
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
        depth = self.conv_depth
        padding = (0, 1) if axis == 2 else (1, 0)
        value, gate = conv2d(hidden, depth.weight, depth.bias, 1, padding, 1, depth.groups).chunk(2, dim=1)
        mixed = self.conv_point(value * silu(gate))
        return rearrange(mixed, "batch dim h w -> batch (h w) dim")


def depthwise_band(
    band: Float[Tensor, "batch height width dim"],
    rows: Pending[Neighbours],
    axis: int,
    widen: Callable[[Tensor], Tensor],
    convolve: Callable[[Tensor], Tensor],
    beside: bool = False,
) -> Float[Tensor, "batch height width mixed"]:
    """`convolve` (3 rows deep, zero-padded, channels last) of the widened band, its neighbours on their way.

    The band is convolved as if it were alone; the rows that come are widened, and the border rows done anew
    from strips of three. No copy of the band is made, and the exchange has all of that to hide in. `beside`
    lets the strips run beside the band, on a stream of their own, while a CUDA graph is captured.
    """
    if band.shape[axis] == 1:
        hidden = widen(band)
        sides = [torch.zeros_like(hidden) if part is None else widen(part) for part in rows.wait()]
        return convolve(torch.cat([sides[0], hidden, sides[1]], dim=axis)).narrow(axis, 1, 1)

    def arrived() -> list[Tensor | None]:
        return [None if part is None else widen(part) for part in rows.wait()]

    branch = Branch(band, beside)
    with branch:
        sides = arrived() if branch.open else None
    hidden = widen(band)
    branch.follow()
    with branch:
        strips = None if sides is None else _border_rows(hidden, sides, axis, convolve)
    mixed = convolve(hidden)
    branch.join()
    if strips is None:
        strips = _border_rows(hidden, arrived(), axis, convolve)
    for place, row in strips:
        mixed.narrow(axis, place, 1).copy_(row)
    return mixed


def _border_rows(
    hidden: Tensor, sides: list[Tensor | None], axis: int, convolve: Callable[[Tensor], Tensor]
) -> list[tuple[int, Tensor]]:
    """The first and the last row of the convolved band, where there is a neighbour: (place, row)."""
    before, after = sides
    last = hidden.shape[axis] - 2
    rows: list[tuple[int, Tensor]] = []
    if before is not None:
        strip = convolve(torch.cat([before, hidden.narrow(axis, 0, 2)], dim=axis))
        rows.append((0, strip.narrow(axis, 1, 1)))
    if after is not None:
        strip = convolve(torch.cat([hidden.narrow(axis, last, 2), after], dim=axis))
        rows.append((last + 1, strip.narrow(axis, 1, 1)))
    return rows


class Branch:
    """Work on a second stream of a CUDA graph that is being captured; elsewhere, nothing special.

    Everything made inside must be joined before it is let go of: then no memory is reused too early.
    """

    def __init__(self, like: Tensor, wanted: bool) -> None:
        capturing = wanted and like.is_cuda and torch.cuda.is_current_stream_capturing()
        self.main = torch.cuda.current_stream(like.device) if capturing else None
        self.side = torch.cuda.Stream(like.device) if capturing else None
        self.follow()

    @property
    def open(self) -> bool:
        """Whether there is a second stream."""
        return self.side is not None

    def follow(self) -> None:
        """What comes next on the branch sees what is on the main stream by now."""
        if self.side is not None:
            self.side.wait_stream(self.main)

    def join(self) -> None:
        """What comes next on the main stream sees what is on the branch by now."""
        if self.main is not None:
            self.main.wait_stream(self.side)

    def __enter__(self) -> None:
        self._context = torch.cuda.stream(self.side)
        self._context.__enter__()

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)


def extend(
    features: Features, rows: Neighbours, depth: int, axis: int
) -> Float[Tensor, "batch channels h w"]:
    """The band with `depth` rows on both sides: the neighbours', or zeros at the image's border."""
    shape = list(features.shape)
    shape[axis] = depth
    before, after = (features.new_zeros(shape) if side is None else side.to(features.dtype) for side in rows)
    return torch.cat([before, features, after], dim=axis)
