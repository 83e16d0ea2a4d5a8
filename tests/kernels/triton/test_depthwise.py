import pytest
import torch

from fewer.kernels.depthwise import reference_depthwise_gated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 9, 12), (1, 3, 16, 40)])
@pytest.mark.parametrize("pre_silu", [False, True])
def test_agrees_with_the_reference(dtype: torch.dtype, shape: tuple, pre_silu: bool, draw) -> None:
    from fewer.kernels.triton.depthwise import launch_depthwise_gated

    x, weight, bias = (
        draw(*shape, dtype=dtype),
        draw(shape[3], 3, 3, dtype=dtype),
        draw(shape[3], dtype=dtype),
    )
    out = launch_depthwise_gated(x, weight, bias, pre_silu)
    wanted = reference_depthwise_gated(x, weight, bias, pre_silu)
    error = (out.float() - wanted.float()).norm() / wanted.float().norm()
    assert out.shape == wanted.shape and error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_lines_leave_no_round_nearly_empty() -> None:
    from fewer.kernels.triton.depthwise import lines_of

    assert lines_of(32, 180, 528) == 16, "one round of 360 programs, not two of 540"
    assert lines_of(32, 352, 528) == 11, "two full rounds of 528, not two of 704"
    assert lines_of(1, 7, 528) == 1 and lines_of(8, 1, 1) == 8
    assert all(1 <= lines_of(height, 45, 528) <= height for height in (1, 5, 123))
