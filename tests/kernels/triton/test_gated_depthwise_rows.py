import pytest
import torch

from fewer.kernels.gated_depthwise import reference_backward

CASES = [
    ((1, 1, 1, 2), (4, 2, None), torch.float32, True),
    ((2, 3, 2, 4), (2, 2, None), torch.float32, False),
    ((1, 3, 3, 6), (2, 4, None), torch.float32, True),
    ((1, 2, 4, 2), (2, 1, None), torch.bfloat16, True),
]


@pytest.mark.parametrize(("shape", "form", "dtype", "pre_silu"), CASES)
def test_gradients_agree_with_the_reference(
    shape: tuple[int, ...], form: tuple[int, int, int | None], dtype: torch.dtype, pre_silu: bool, draw
) -> None:
    from fewer.kernels.triton.gated_depthwise_rows import launch_rows_backward

    both = shape[3]
    features, grad = draw(*shape, dtype=dtype), draw(*shape[:3], both // 2, dtype=dtype)
    weight, bias = draw(both, 1, 3, 3), draw(both)  # in fp32 beside bf16 features
    wanted = reference_backward(grad, features, weight, bias, pre_silu)
    wanted = (*wanted, wanted[0].float().sum((0, 1, 2)))
    for ours, theirs in zip(
        launch_rows_backward(grad, features, weight, bias, pre_silu, form), wanted, strict=True
    ):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-6)
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)
