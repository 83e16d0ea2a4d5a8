import torch
import triton
import triton.language as tl

from fewer.kernels.triton.taps import columns, filled, row_of_taps, weights


@triton.jit
def _one_line_kernel(x, taps, out, width, channels, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    channel = tl.arange(0, CHANNELS)
    alive = channel < channels
    first = tl.arange(0, GROUPS) * 4
    w = weights(taps + channel, channels, alive)
    line = columns(x + channel[None, :], first, channels, width, alive, 4, False, False)
    sums = row_of_taps(filled(tl.zeros((GROUPS, CHANNELS), dtype=tl.float32), 4), line, w, 4, 1)
    for place in tl.static_range(4):
        pixel = first + place
        inside = (pixel < width)[:, None] & alive[None, :]
        tl.store(out + pixel[:, None] * channels + channel[None, :], sums[place], mask=inside)


def test_one_line_is_a_convolution_of_its_pixels(draw) -> None:
    x, taps = draw(7, 5), draw(9, 5)
    out = torch.empty_like(x)
    _one_line_kernel[(1,)](x, taps, out, 7, 5, GROUPS=2, CHANNELS=8)
    middle = taps[3:6].T[:, None]  # the row of the kernel that lies on the line
    wanted = torch.nn.functional.conv1d(x.T[None], middle, padding=1, groups=5)[0].T
    assert torch.allclose(out, wanted, atol=1e-5)
