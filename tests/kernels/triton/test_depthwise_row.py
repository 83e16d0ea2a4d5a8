import pytest
import torch

from fewer.kernels.depthwise import reference_depthwise_gated

pytest.importorskip("triton")
from fewer.kernels.triton.depthwise_row import launch_depthwise_row


@pytest.mark.parametrize("by_taps", [False, True])
@pytest.mark.parametrize(("batch", "width", "channels"), [(1, 1, 1), (2, 9, 5), (1, 6, 130)])
def test_equals_the_reference_wherever_the_rows_lie(
    batch: int, width: int, channels: int, by_taps: bool
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(batch, 4, width, 2 * channels, generator=generator).to(device)
    near = torch.randn(batch, width, 2 * channels, generator=generator).to(device)
    weight = torch.randn(2 * channels, 3, 3, generator=generator).to(device)
    if by_taps:  # as the engine lays it out
        weight = weight.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    bias = torch.randn(2 * channels, generator=generator).to(device)
    out = torch.zeros(batch, 4, width, channels, device=device)
    launch_depthwise_row(picture[:, 2], picture[:, 3], near, weight, bias, out[:, 3])
    strip = torch.stack([picture[:, 2], picture[:, 3], near], 1)
    expected = reference_depthwise_gated(strip, weight, bias, False)[:, 1]
    assert torch.allclose(out[:, 3], expected, atol=1e-5)
    assert not out[:, :3].any()
