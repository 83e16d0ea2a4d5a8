import pytest
import torch

from fewer.kernels.quantize import reference_quantize_rows
from fewer.kernels.triton.quantize import launch_quantize_rows
from fewer.kernels.triton.quantize_streamed import fits_streamed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "dim", "rank"), [(2, 5, 3), (18, 300, 32), (34, 512, 16)])
@pytest.mark.parametrize("before", ["nothing", "norm", "sum", "sum, norm"])
def test_codes_scales_projection_and_sum(
    dtype: torch.dtype, rows: int, dim: int, rank: int, before: str, draw
) -> None:
    x, smooth, down = draw(rows, dim, dtype=dtype) + 20, draw(dim).abs() + 0.5, draw(rank, dim, dtype=dtype)
    shift, scale = (draw(2, dim), draw(2, dim)) if "norm" in before else (None, None)
    update, gate = (draw(rows, dim, dtype=dtype), draw(2, dim)) if "sum" in before else (None, None)
    facts = (x, smooth, down, shift, scale, 1e-6, update, gate)
    found, wanted = launch_quantize_rows(*facts, way="streamed"), reference_quantize_rows(*facts)
    assert torch.allclose(found[1], wanted[1], rtol=1e-4)
    difference = (found[0].int() - wanted[0].int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.01
    error = (found[2] - wanted[2]).float().norm() / wanted[2].float().norm()
    assert error < (1e-4 if dtype == torch.float32 else 1e-2)
    assert torch.allclose(found[3].float(), wanted[3].float(), atol=1e-5 if dtype == torch.float32 else 0.02)


def test_a_large_mean_takes_nothing_from_the_spread_and_zero_rows_stay_zero(draw) -> None:
    x, down = draw(17, 700), draw(4, 700)
    x[:8] += 3000
    ones = torch.zeros(1, 700, device=x.device)
    facts = (x, None, down, ones, ones, 1e-6)
    found, wanted = launch_quantize_rows(*facts, way="streamed"), reference_quantize_rows(*facts)
    assert torch.allclose(found[1], wanted[1], rtol=1e-3)
    zeros = launch_quantize_rows(0 * x, None, down, None, None, 1e-6, way="streamed")
    assert all((part == 0).all() for part in zeros[:3])


def test_nobody_gets_it_unasked(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWER_STREAMED", raising=False)
    assert not fits_streamed(draw(2, 2048, dtype=torch.bfloat16))
