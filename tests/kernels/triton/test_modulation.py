import pytest
import torch

from fewer.kernels.modulation import reference_gated_norm, reference_gated_norm_backward

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> bool:
    error = (ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-6)
    return ours.shape == theirs.shape and float(error) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 5, 9)])
@pytest.mark.parametrize(("gated", "normed"), [(True, True), (False, True), (True, False)])
def test_both_passes_agree_with_the_reference(
    dtype: torch.dtype, shape: tuple[int, ...], gated: bool, normed: bool, draw
) -> None:
    from fewer.kernels.triton.modulation import launch_gated_norm, launch_gated_norm_backward

    x, u, g, upper = (draw(*shape, dtype=dtype) for _ in range(4))
    table = draw(shape[0], 3, shape[2])  # views with a stride between batches, in fp32 beside bf16 tokens
    gate = table[:, 0] if gated else None
    shift, scale = (table[:, 1], table[:, 2]) if normed else (None, None)
    found = launch_gated_norm(x, u, gate, shift, scale, 1e-6, (4, 1, 1))
    wanted = reference_gated_norm(x, u, gate, shift, scale, 1e-6)
    assert all(close(a, b, dtype) for a, b in zip(found, wanted, strict=True))

    arguments = (g, upper if normed else None, wanted[0], u, gate, scale, 1e-6)
    of_x, of_u, sums = launch_gated_norm_backward(*arguments, (2, 2, 1))
    wanted_x, wanted_u, wanted_sums = reference_gated_norm_backward(*arguments)
    assert close(of_x, wanted_x, dtype) and close(of_u, wanted_u, dtype)
    present = [place for place, there in enumerate((normed, normed, gated, True)) if there]
    # One token, one norm: shift's and scale's sums are small, and rounding of what was read is in them.
    assert close(sums[present], wanted_sums[present], dtype)
