import pytest
import torch

from fewer.kernels.quantize import reference_quantize_rows


def test_rounding_is_half_to_even(device: torch.device) -> None:
    from fewer.kernels.triton.quantize import launch_quantize_rows

    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49]], device=device)
    codes, scale, _, _ = launch_quantize_rows(x, None, None, None, None, 1e-6)
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
    codes, size, projected, _ = launch_quantize_rows(x, smooth, down, shift, scale, 1e-6)
    wanted_codes, wanted_size, wanted_projected, _ = reference_quantize_rows(
        x, smooth, down, shift, scale, 1e-6
    )
    assert torch.allclose(size, wanted_size, rtol=1e-4)
    # A sum in another order may move a value across a rounding border, by one code and rarely.
    difference = (codes.int() - wanted_codes.int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.01
    error = (projected - wanted_projected).float().norm() / wanted_projected.float().norm()
    assert error < (1e-4 if dtype == torch.float32 else 1e-2)


def test_without_smoothing_or_projection(draw) -> None:
    from fewer.kernels.triton.quantize import launch_quantize_rows

    x = draw(3, 40)
    for mine, theirs in zip(
        launch_quantize_rows(x, None, None, None, None, 1e-6),
        reference_quantize_rows(x, None, None, None, None, 1e-6),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("dim", "way"), [(64, "rows"), (520, "resident"), (520, "rows"), (1152, "resident")])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_sum_before_it(dim: int, way: str, norm: bool, gated: bool, draw) -> None:
    from fewer.kernels.triton.quantize import launch_quantize_rows

    x, update, down = draw(6, dim), draw(6, dim), draw(5, dim, dtype=torch.bfloat16)
    shift, scale = (draw(2, dim), draw(2, dim)) if norm else (None, None)
    arguments = (x, None, down, shift, scale, 1e-6, update, draw(2, dim) if gated else None)
    found = launch_quantize_rows(*arguments, way=way)
    wanted = reference_quantize_rows(*arguments)
    assert torch.allclose(found[3], wanted[3], atol=1e-6)
    assert torch.allclose(found[1], wanted[1], rtol=1e-4)
    difference = (found[0].int() - wanted[0].int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.01
    assert (found[2] - wanted[2]).float().norm() < 1e-2 * wanted[2].float().norm()


@pytest.mark.parametrize(
    ("dim", "kind"),
    [(4097, "float32"), (5000, "bfloat16"), (9001, "float16"), (16_384, "bfloat16"), (16_400, "bfloat16")],
)
@pytest.mark.parametrize("ready", [False, True])
def test_rows_too_long_for_registers_in_fp32(dim: int, kind: str, ready: bool, draw) -> None:
    """Of 16 bits up to four pieces are read once; of 32, or more, twice."""
    from fewer.kernels.triton.quantize import launch_quantize_rows

    x, smooth = draw(3, dim, dtype=getattr(torch, kind)), draw(dim).abs() + 0.5
    x[1] = 0
    inverse = 1 / smooth if ready else None
    found = launch_quantize_rows(x, smooth, None, None, None, 1e-6, inverse=inverse)
    wanted = reference_quantize_rows(x, smooth, None, None, None, 1e-6)
    assert torch.allclose(found[1], wanted[1], rtol=1e-6) and found[1][1] == 0
    difference = (found[0].int() - wanted[0].int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.001
