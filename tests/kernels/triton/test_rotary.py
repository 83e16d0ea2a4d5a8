import pytest
import torch

from fewer.kernels.rotary import reference_norm_and_rotate

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 1, 2), (5, 3, 10), (3, 5, 72), (4, 24, 128)])
def test_it_is_the_reference_in_place(dtype: torch.dtype, rows: int, heads: int, dim: int, draw) -> None:
    from fewer.kernels.triton.rotary import launch_norm_and_rotate

    whole = draw(rows + 2, 3 * heads * dim, dtype=dtype)
    expected, before = whole.clone(), whole.clone()
    angles = draw(rows, dim // 2)
    facts = (draw(dim, dtype=dtype), draw(dim, dtype=dtype), angles.cos(), angles.sin(), heads, 1e-6)
    launch_norm_and_rotate(whole[1:-1], *facts)
    reference_norm_and_rotate(expected[1:-1], *facts)
    assert torch.equal(whole[0], before[0]) and torch.equal(whole[-1], before[-1])
    assert torch.equal(whole[:, 2 * heads * dim :], before[:, 2 * heads * dim :])
    error = (whole.float() - expected.float()).norm() / expected.float().norm()
    assert error <= TOLERANCE[dtype]


def test_angles_in_sixteen_bits_and_columns_that_are_apart(draw) -> None:
    from fewer.kernels.triton.rotary import launch_norm_and_rotate

    joint = draw(24, 6).T  # columns are a row's length apart
    expected, angles = joint.clone(), draw(6, 4).bfloat16()
    facts = (draw(8), draw(8), angles.cos(), angles.sin()[:, :], 1, 1e-6)
    launch_norm_and_rotate(joint, *facts)
    reference_norm_and_rotate(expected, *facts)
    assert torch.allclose(joint, expected, atol=1e-5)
