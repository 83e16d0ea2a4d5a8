import pytest
import torch

from fewer.kernels.convolution import (
    doubling_phases,
    reference_convolution,
    reference_doubling_convolution,
)


@pytest.mark.parametrize("normed", [False, True])
def test_what_the_large_tiles_do_not_fit_takes_the_plain_way(normed: bool, draw) -> None:
    from fewer.kernels.triton.convolution import launch_convolution, launch_doubling_convolution

    rows, weight, bias = draw(2, 3, 5, 6), draw(4, 6, 3, 3), draw(4)
    norm = (draw(4), draw(4), draw(2, 3, 5, 4)) if normed else (None, None, None)
    arguments = (rows, weight, None if normed else bias, "silu", *norm)
    assert torch.allclose(
        launch_convolution(*arguments), reference_convolution(*arguments), rtol=1e-2, atol=1e-2
    )
    phases = doubling_phases(weight)
    wanted = reference_doubling_convolution(rows, phases, bias)
    assert torch.allclose(launch_doubling_convolution(rows, phases, bias), wanted, rtol=1e-2, atol=1e-2)
