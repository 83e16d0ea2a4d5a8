import pytest
import torch

from fewer.kernels.norms import (
    reference_gated_add,
    reference_gated_add_norm,
    reference_modulated_norm,
    reference_rms_norm_add,
)

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 123), (2, 4, 64)])
def test_modulated_norm(dtype: torch.dtype, shape: tuple, draw) -> None:
    from fewer.kernels.triton.norms import launch_modulated_norm

    x = draw(*shape, dtype=dtype) + 3
    table = draw(shape[0], 6, shape[2], dtype=dtype)  # views with a stride between batches
    out = launch_modulated_norm(x, table[:, 0], table[:, 1], 1e-6)
    assert relative(out, reference_modulated_norm(x, table[:, 0], table[:, 1], 1e-6)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
@pytest.mark.parametrize("channels", [1, 37, 128])
def test_rms_norm_add(dtype: torch.dtype, activation: str, channels: int, draw) -> None:
    from fewer.kernels.triton.norms import launch_rms_norm_add

    x, weight, bias = (
        draw(2, 5, channels, dtype=dtype),
        draw(channels, dtype=dtype),
        draw(channels, dtype=dtype),
    )
    residual = draw(2, 5, channels, dtype=dtype)
    for other in (None, residual):
        out = launch_rms_norm_add(x, weight, bias, other, activation, 1e-5)
        wanted = reference_rms_norm_add(x, weight, bias, other, activation, 1e-5)
        assert relative(out, wanted) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "dim"), [(2, 5), (6, 123), (4, 64)])
@pytest.mark.parametrize("gated", [False, True])
def test_gated_add_with_and_without_norm(dtype: torch.dtype, rows: int, dim: int, gated: bool, draw) -> None:
    from fewer.kernels.triton.norms import launch_gated_add, launch_gated_add_norm

    x, update, table = (
        draw(rows, dim, dtype=dtype),
        draw(rows, dim, dtype=dtype),
        draw(2, 3, dim, dtype=dtype),
    )
    gate = table[:, 0] if gated else None
    assert (
        relative(launch_gated_add(x, update, gate), reference_gated_add(x, update, gate)) <= TOLERANCE[dtype]
    )
    total, normed = launch_gated_add_norm(x, update, gate, table[:, 1], table[:, 2], 1e-6)
    wanted = reference_gated_add_norm(x, update, gate, table[:, 1], table[:, 2], 1e-6)
    assert relative(total, wanted[0]) <= TOLERANCE[dtype]
    assert relative(normed, wanted[1]) <= 2 * TOLERANCE[dtype]
