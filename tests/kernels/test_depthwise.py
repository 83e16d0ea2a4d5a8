import pytest
import torch

from fewer.kernels.depthwise import depthwise_gated


@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_equals_convolution_split_and_gate(size: tuple, draw) -> None:
    x, weight, bias = draw(2, *size, 12), draw(12, 3, 3), draw(12)
    full = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight[:, None], bias, padding=1, groups=12)
    value, gate = full.permute(0, 2, 3, 1).chunk(2, dim=-1)
    assert torch.allclose(depthwise_gated(x, weight, bias), value * gate * gate.sigmoid(), atol=1e-5)
    pre = torch.nn.functional.silu(x)
    assert torch.allclose(
        depthwise_gated(x, weight, bias, True), depthwise_gated(pre, weight, bias), atol=1e-5
    )


def test_operator_is_registered_properly(draw) -> None:
    torch.library.opcheck(torch.ops.fewer.depthwise_gated, (draw(1, 3, 2, 4), draw(4, 3, 3), draw(4), False))
