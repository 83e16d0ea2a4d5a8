import pytest
import torch

from fewer.kernels.quantize import reference_quantize_rows


def test_rounding_is_half_to_even(device: torch.device) -> None:
    from fewer.kernels.triton.quantize import launch_quantize_rows

    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49]], device=device)
    codes, scale, _ = launch_quantize_rows(x, None, None, None, None, 1e-6)
    assert scale.item() == 1.0
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "dim", "rank"), [(1, 5, 3), (18, 300, 32), (4, 64, 16)])
@pytest.mark.parametrize("norm", [False, True])
def test_codes_scales_and_projection(
    dtype: torch.dtype, rows: int, dim: int, rank: int, norm: bool, draw
) -> None:
    from fewer.kernels.triton.quantize import launch_quantize_rows

    x, smooth, down = draw(rows, dim, dtype=dtype), draw(dim).abs() + 0.5, draw(rank, dim, dtype=dtype)
    batch = 2 if rows % 2 == 0 else 1
    shift, scale = (draw(batch, dim), draw(batch, dim)) if norm else (None, None)
    codes, size, projected = launch_quantize_rows(x, smooth, down, shift, scale, 1e-6)
    wanted_codes, wanted_size, wanted_projected = reference_quantize_rows(x, smooth, down, shift, scale, 1e-6)
    assert torch.allclose(size, wanted_size, rtol=1e-5)
    # A sum in another order may move a value across a rounding border, by one code and rarely.
    difference = (codes.int() - wanted_codes.int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.01
    error = (projected - wanted_projected).norm() / wanted_projected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_without_smoothing_or_projection(draw) -> None:
    from fewer.kernels.triton.quantize import launch_quantize_rows

    x = draw(3, 40)
    for mine, theirs in zip(
        launch_quantize_rows(x, None, None, None, None, 1e-6),
        reference_quantize_rows(x, None, None, None, None, 1e-6),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
