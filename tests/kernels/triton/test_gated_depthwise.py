import pytest
import torch

from fewer.kernels.gated_depthwise import reference_backward


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 10), (2, 4, 8, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pre_silu", [False, True])
def test_gradients_agree_with_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, pre_silu: bool, draw
) -> None:
    from fewer.kernels.triton.gated_depthwise import launch_gated_depthwise_backward

    both = shape[3]
    features, grad = draw(*shape, dtype=dtype), draw(*shape[:3], both // 2, dtype=dtype)
    weight, bias = draw(both, 1, 3, 3), draw(both)  # in fp32 beside bf16 features, as training has them
    wanted = reference_backward(grad, features, weight, bias, pre_silu)
    found = launch_gated_depthwise_backward(grad, features, weight, bias, pre_silu, (4, 4))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-6)
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)
