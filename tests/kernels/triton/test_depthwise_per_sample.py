import pytest
import torch

from fewer.kernels.depthwise_per_sample import reference_depthwise_per_sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 5, 9, 12), (2, 3, 7, 40)])
@pytest.mark.parametrize("silu", [False, True])
def test_agrees_with_the_reference(dtype: torch.dtype, shape: tuple, silu: bool, draw) -> None:
    from fewer.kernels.triton.depthwise_per_sample import launch_depthwise_per_sample

    batch, channels = shape[0], shape[3]
    x, weight, bias = (draw(*size, dtype=dtype) for size in (shape, (batch, channels, 3, 3), (channels,)))
    out = launch_depthwise_per_sample(x, weight, bias, silu)
    wanted = reference_depthwise_per_sample(x, weight, bias, silu)
    error = (out.float() - wanted.float()).norm() / wanted.float().norm()
    assert out.shape == wanted.shape and error < (1e-5 if dtype == torch.float32 else 1e-2)
