import pytest
import torch

from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.depthwise_row import depthwise_row


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("width", "channels"), [(1, 3), (5, 8)])
def test_a_row_is_that_of_the_whole_picture(dtype: torch.dtype, width: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(2, 6, width, 2 * channels, generator=generator).to(dtype)
    weight = torch.randn(2 * channels, 3, 3, generator=generator).to(dtype)
    bias = torch.randn(2 * channels, generator=generator).to(dtype)
    whole = depthwise_gated(picture, weight, bias)
    out = torch.full_like(whole, float("nan"))
    for row in range(1, 5):
        depthwise_row(*picture[:, row - 1 : row + 2].unbind(1), weight, bias, out[:, row])
    assert torch.allclose(out[:, 1:5], whole[:, 1:5], atol=2e-2 if dtype == torch.bfloat16 else 1e-6)
    assert out[:, 0].isnan().all() and out[:, 5].isnan().all()
