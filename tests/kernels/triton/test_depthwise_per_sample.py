import pytest
import torch

from fewer.kernels.depthwise_per_sample import (
    reference_depthwise_per_sample,
    reference_depthwise_per_sample_gradients,
)


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


@pytest.mark.parametrize("tile", [(1, 2, 1, 4, 1), (4, 4, 4, 64, 2)])
def test_tiles_larger_and_smaller_than_the_picture_agree(tile: tuple, draw) -> None:
    from fewer.kernels.triton.depthwise_per_sample import launch_depthwise_per_sample

    x, weight, bias = draw(1, 5, 3, 6), draw(1, 6, 3, 3), draw(6)
    out = launch_depthwise_per_sample(x, weight, bias, False, tile)
    assert torch.allclose(out, reference_depthwise_per_sample(x, weight, bias, False), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 4, 18, 5), (2, 3, 7, 40)])
def test_gradients_agree_with_the_reference(dtype: torch.dtype, shape: tuple, draw) -> None:
    from fewer.kernels.triton.depthwise_per_sample import launch_depthwise_per_sample_gradients

    x, slope = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
    found = launch_depthwise_per_sample_gradients(x, slope)
    for ours, theirs in zip(found, reference_depthwise_per_sample_gradients(x, slope), strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
