import pytest
import torch

from fewer.kernels.aggregate import reference_aggregate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "group", "side"), [((1, 1, 1, 8), 8, 3), ((2, 5, 9, 64), 32, 5)])
def test_agrees_with_the_reference(dtype: torch.dtype, shape: tuple, group: int, side: int, draw) -> None:
    from fewer.kernels.triton.aggregate import launch_aggregate

    x, depthwise = draw(*shape, dtype=dtype), draw(shape[3], side, side, dtype=dtype)
    pointwise = draw(shape[3], group, dtype=dtype)
    out = launch_aggregate(x, depthwise, pointwise, block=16)
    wanted = reference_aggregate(x.float(), depthwise.float(), pointwise.float())
    assert out.dtype == dtype
    assert (out.float() - wanted).norm() < (1e-5 if dtype == torch.float32 else 2e-2) * wanted.norm()
